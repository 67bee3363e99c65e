"""`fastslow serve` as a program, its processes, and what they take; and the engine without a server."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
REPLICAS = b"ServeReplica", b"serve.engines.process.child"  # of the title of a replica's process
START = 240.0  # seconds that models have to load
ADDRESS = re.compile(r" is served at (http://\S+?),")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Processor time so far.

    Attributes:
        replicas: by process, and by thread.
        others: of all other processes, by process.
    """

    replicas: dict[int, dict[int, float]]
    others: dict[int, float]


class Front:
    """The command, once it answers.

    Args:
        model: a folder or a built-in name; it is served as "measured".
        arguments: of the command.
        replicas: how many must run before it counts as started; 0: it runs without Ray.

    Attributes:
        address: of the server.
    """

    def __init__(self, model: str, arguments: Sequence[str] = (), replicas: int = 0) -> None:
        several = ["--replicas", str(replicas)] if replicas else []
        command = ["-m", "fastslow", "serve", model, "--served-model-name", "measured"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--port", "0", *several, *arguments],
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self.said: list[str] = []
        addresses: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(addresses,), daemon=True).start()
        try:
            self.address = addresses.get(timeout=START)
            if not self.address:
                raise TimeoutError
            self._wait(replicas)
        except (queue.Empty, TimeoutError):
            self.end()
            raise RuntimeError("\n".join(["the server did not start", *self.said[-20:]])) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def replicas(self) -> list[int]:
        """The processes of replicas."""
        return sorted(
            pid for pid in descendants(self.pid) if any(map(_title(pid).__contains__, REPLICAS))
        )

    def cpu_seconds(self) -> CpuSeconds:
        """What was computed so far, by the clients in this process, too."""
        replicas, own = self.replicas, os.times()
        others = {os.getpid(): own.user + own.system}
        for pid in {self.pid, *descendants(self.pid)} - set(replicas):
            with suppress(OSError):  # it has ended meanwhile
                others[pid] = cpu_seconds(pid)
        return CpuSeconds({pid: thread_seconds(pid) for pid in replicas}, others)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/v1/stats", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def end(self) -> int:
        """As an operator ends it: the exit code."""
        self.process.send_signal(signal.SIGTERM)  # nothing, if it has ended
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _read(self, addresses: queue.Queue[str]) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            del self.said[:-2000]
            if found := ADDRESS.search(line):
                addresses.put(found[1])
        addresses.put("")  # it has ended

    def _wait(self, replicas: int) -> None:
        """Until all replicas answer."""
        end = time.monotonic() + START
        while replicas and len(self.stats().get("replicas", ())) < replicas:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.5)


class BareEngine:
    """bare.py, loaded: an engine without a server.

    Args:
        model: a folder or a built-in name.
        options: of `LLM`.
    """

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        asked = json.dumps({"model": model, "options": options})
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "bare.py"), asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self._read()

    def measure(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What it makes of clients' prompts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._read())
        return found

    def end(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare engine ended with exit code {self._process.wait()}")
        return line


def environment() -> dict[str, str]:
    """This process's, in which this checkout is found."""
    paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


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


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, and those that they started."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ended meanwhile
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def _title(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
