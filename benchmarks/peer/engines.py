"""The engines that can be compared: the virtual environment of each, and its process."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """An engine. `formats`: those of a run that names none; `others` may be asked for.

    `module` tells whether an interpreter has it; `build` holds variables for its installation. `makes_files`:
    its first load of a format writes files that later loads only read.
    """

    adapter: str  # a module of this folder
    module: str
    formats: tuple[str, ...]
    others: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    makes_files: bool = False


# "file" is the GGUF as it is; other formats of llama.cpp and OpenVINO are rounded from it.
PEERS = {
    "fastslow": Peer(
        "ours", "fastslow", ("bfloat16", "int8", "int4"), ("float32", "float16", "auto", "file"),
        makes_files=True,
    ),
    "llama.cpp": Peer(
        "llama", "llama_cpp", ("file", "q8_0", "bf16", "f16"), (), ("llama-cpp-python==0.3.36",),
        # Many minutes. Native: the instructions of this very processor.
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}, makes_files=True,
    ),
    "openvino": Peer(
        "vino", "openvino_genai", ("file",), ("q8_0", "f16"),
        ("openvino-genai==2026.4.1.0", "numpy"),
    ),
}  # fmt: skip


def read_names(wish: str) -> list[tuple[str, str]]:
    """Engines and formats of a text such as "fastslow,llama.cpp:file,openvino". ValueError: an unknown engine or
    format."""
    found = []
    for part in wish.split(","):
        name, _, format = part.strip().partition(":")
        if name not in PEERS:
            raise ValueError(f"engine {name!r} is unknown; known: {', '.join(PEERS)}")
        known = PEERS[name].formats + PEERS[name].others
        if format and format not in known:
            raise ValueError(f"{name} has no format {format!r}; known: {', '.join(known)}")
        found += [(name, f) for f in ((format,) if format else PEERS[name].formats)]
    return found


def python_of(name: str, folder: Path) -> Path | None:
    """The interpreter that has an engine: its own environment's, else this one; None = neither."""
    if name != "fastslow" and (own := folder / name / "bin" / "python").exists():
        return own
    return Path(sys.executable) if importlib.util.find_spec(PEERS[name].module) else None


def set_up(name: str, folder: Path) -> int:
    """Make an engine's virtual environment and install it there; pip's exit code; pip says what failed."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    pip = [str(folder / name / "bin" / "python"), "-m", "pip"]
    peer, variables = PEERS[name], {**os.environ, **PEERS[name].build}
    return subprocess.call([*pip, "install", *peer.requirements], env=variables)


class EngineError(RuntimeError):
    """An engine refused, crashed or took too long; the text says which, in one line."""


class EngineClient:
    """An engine in a separate process, loaded once and asked many times by JSON lines.

    Args:
        python: the interpreter of the engine's environment.
        adapter: the module of this folder that it runs.
        environment: variables on top of this process's own.
        log: where everything goes that the engine prints.
    """

    def __init__(
        self, python: Path, adapter: str, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        folders = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [str(python), "-m", f"peer.{adapter}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment},
            )  # fmt: skip
        self.pid = self._process.pid

    def ask(self, do: str, limit: float = 900, **arguments: Any) -> Any:
        """Return a command's reply. EngineError: it failed, or gave no reply within `limit` seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(f"{do}: the process is gone, see {self.log}") from None
        # Replies alternate with commands, so nothing can be waiting in the reader's own buffer.
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self._process.kill()
            raise EngineError(f"{do}: no reply in {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"{do}: it ended with code {self._process.wait()}, see {self.log}")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{do}: {' '.join(reply['error'].split())}")
        return reply["reply"]

    def close(self) -> None:
        """End the process, gently first. Closing twice is fine."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
