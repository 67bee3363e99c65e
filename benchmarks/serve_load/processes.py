"""The processes that are measured, and what they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of a process, all its threads."""
    return _seconds(Path(f"/proc/{pid}/stat"))


def thread_seconds(pid: int) -> dict[int, float]:
    """The same of each of its threads; {}: it is gone."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            found[int(task.name)] = _seconds(task / "stat")
    return found


def _seconds(stat: Path) -> float:
    fields = stat.read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """MiB of a process that no file holds; 0: it is gone."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        return (
            next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line) / 1024
        )
    return 0.0


class Program:
    """A program of this folder, told its settings; `read` gives a line of what it prints."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        log: IO[bytes] | None = None,
        **more: Any,
    ) -> None:
        paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(HERE / name), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*more.pop("paths", ()), *paths])},
            text=True,
            **more,
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a program ended with exit code {self.process.wait()}")
        return line.strip()

    def end(self) -> int:
        """Ask it to end: the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class BareEngine(Program):
    """bare.py, loaded."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__("bare.py", settings)
        self.read()

    def measure(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.read())
        return found


class ServerProgram(Program):
    """program.py, loaded.

    Attributes:
        address: of the server.
    """

    def __init__(
        self, settings: Mapping[str, Any], log: IO[bytes] | None = None, **more: Any
    ) -> None:
        super().__init__("program.py", settings, log, **more)
        self.address = self.read()
        self.read()

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str) -> dict[str, Any]:
        """The JSON of a page."""
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def stats(self) -> dict[str, Any]:
        return self.get("/stats")
