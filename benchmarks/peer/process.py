"""The parent's side of a comparison: an engine in a process of its own, asked by JSON lines."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EngineError(RuntimeError):
    """An engine refused, crashed or took too long; the text says which, in one line."""


class Child:
    """One engine, loaded once and asked many times.

    Args:
        name: engine and format, for people.
        python: the interpreter of the engine's environment.
        adapter: the module of this folder that it runs.
        environment: variables on top of this process's own.
        log: where everything goes that the engine prints.
    """

    def __init__(
        self, name: str, python: Path, adapter: str, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                [str(python), "-m", f"peer.{adapter}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, limit: float = 900, **arguments: Any) -> Any:
        """One command's reply.

        Raises:
            EngineError: it failed, or gave no reply within `limit` seconds.
        """
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
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
