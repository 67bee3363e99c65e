"""ik_llama.cpp, as one of the engines compared, through its own programs: it has no Python package.

Build it by hand and say where its programs are:

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON
    cmake --build build --target llama-bench llama-batched-bench
    IK_LLAMA_BIN=build/bin python benchmarks/peers.py ...

Weights are repacked at run time (`-rtr 1`), which is what makes it fast. Every question loads the file again, outside
of what is timed. Its programs pick tokens at random, so answers are not compared.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer.child import Run, serve

WHERE = "IK_LLAMA_BIN"
SPARE = 512  # tokens of context that its program asks for besides


class IkLlama:
    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self._options = options
        self._folder = Path(os.environ.get(WHERE, ""))
        for name in ("llama-bench", "llama-batched-bench"):
            if not (self._folder / name).is_file():
                raise RuntimeError(f"{WHERE} must name the folder of {name}")
        return {"versions": {"ik_llama.cpp": self._rows("llama-bench", 8, 0)[0]["build_commit"]}}

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        batch, room = len(prompts), len(prompts) * (len(prompts[0]) + tokens) + SPARE
        sizes: list[str | int] = [
            "-npp",
            len(prompts[0]),
            "-ntg",
            tokens,
            "-npl",
            batch,
            "-c",
            room,
        ]
        text = self._output("llama-batched-bench", *sizes, "-b", 512, "-ub", 512, "-rtr")
        # |    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s | ...
        rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
        found = [row for row in rows if row[1].strip() == str(len(prompts[0]))]
        if not found:
            raise RuntimeError("llama-batched-bench printed no row")
        seconds = float(found[0][7])
        # of an answer's tokens the first falls into no engine's seconds
        return Run([[0] * tokens] * batch, seconds * (tokens - 1) / tokens)

    def prefill(self, prompt: Sequence[int]) -> float:
        return len(prompt) / float(self._rows("llama-bench", len(prompt), 0)[0]["avg_ts"])

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        raise RuntimeError("its programs have no prompt lookup")

    def _rows(self, program: str, prompt: int, tokens: int) -> list[dict[str, Any]]:
        asked: list[str | int] = ["-p", prompt, "-n", tokens, "-r", 1, "-o", "json", "-rtr", 1]
        found: list[dict[str, Any]] = json.loads(self._output(program, *asked))
        return found

    def _output(self, program: str, *asked: str | int) -> str:
        threads = str(self._options["threads"])
        command = [str(self._folder / program), "-m", self._options["file"], "-t", threads]
        made = subprocess.run(
            [*command, *map(str, asked)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise RuntimeError(f"{program} ended with code {made.returncode}: {made.stderr[-300:]}")
        return made.stdout or made.stderr  # one of its programs prints its table there


if __name__ == "__main__":
    serve(IkLlama())
