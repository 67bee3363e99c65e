"""The child's side of a comparison: one engine, driven by JSON lines.

Runs inside the engine's own virtual environment, so it needs nothing but the standard library. Between commands the
process sleeps in a read, so engines can take turns on one machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Run(NamedTuple):
    """Answers, and seconds from the first token of the batch to the last."""

    tokens: list[list[int]]
    seconds: float

    @property
    def counted(self) -> int:
        """Tokens that fell into those seconds: each answer's first did not."""
        return sum(len(answer) - 1 for answer in self.tokens)


class Engine(Protocol):
    """The interface of a peer. Everything is greedy, and prompts are token ids."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        """Make it ready for `threads`, texts of `context` tokens and `room` tokens in all. Returns versions by name,
        and what else is to be noted."""

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        """This many tokens for each prompt, all prompts at once; an end token does not end an answer."""

    def prefill(self, prompt: Sequence[int]) -> float:
        """Seconds from the call to the first token."""

    def answer(self, prompt: Sequence[int], tokens: int, nodes: int) -> Run:
        """Answer to the end token, with prompt lookup of `nodes` tokens; 0 = plain."""


def file_of(file: str, format: str, cache: str) -> Path:
    """The file with a GGUF file's weights in another format; "file" is the file itself."""
    return Path(file) if format == "file" else Path(cache) / f"{Path(file).stem}.{format}.gguf"


def serve(engine: Engine) -> None:
    """Answer commands from standard input until it ends.

    Libraries print to standard output as they like, so replies go to a copy of it and the original leads to standard
    error.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    commands: dict[str, Callable[[dict[str, Any]], Any]] = {
        "load": lambda ask: engine.load(ask["options"]),
        "decode": lambda ask: _decode(engine, ask),
        "prefill": lambda ask: [engine.prefill(prompt) for prompt in ask["prompts"]],
        "answer": lambda ask: _answer(engine, ask),
    }
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            reply = {"reply": commands[ask["do"]](ask)}
        except Exception as error:  # noqa: BLE001 - the parent hears of all
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def _decode(engine: Engine, ask: dict[str, Any]) -> dict[str, Any]:
    """Again and again for at least `seconds`, since a short sample says little."""
    runs: list[Run] = []
    ends = time.perf_counter() + ask["seconds"]
    while not runs or time.perf_counter() < ends:
        runs.append(engine.decode(ask["prompts"], ask["tokens"]))
    if short := [len(a) for run in runs for a in run.tokens if len(a) != ask["tokens"]]:
        raise RuntimeError(f"{short[0]} tokens came of {ask['tokens']}")
    rate = sum(run.counted for run in runs) / sum(run.seconds for run in runs)
    return {"rate": rate, "runs": len(runs), "tokens": runs[0].tokens}


def _answer(engine: Engine, ask: dict[str, Any]) -> dict[str, Any]:
    run = engine.answer(ask["prompt"], ask["tokens"], ask["nodes"])
    return {"rate": run.counted / run.seconds, "tokens": run.tokens[0]}
