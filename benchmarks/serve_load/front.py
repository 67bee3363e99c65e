"""`fastslow serve` as a program, and the processes of its replicas."""

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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_load.processes import cpu_seconds, thread_seconds

HERE = Path(__file__).parent
REPLICA = b"ServeReplica"  # of the title that Ray gives a replica's process
START = 240.0  # seconds that models have to load
ADDRESS = re.compile(r" is served at (http://\S+?),")


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
        paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        several = ["--replicas", str(replicas)] if replicas else []
        self.process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "fastslow",
                    "serve",
                    model,
                    "--served-model-name",
                    "measured",
                ),
                *("--port", "0", *several, *arguments),
            ],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
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

    @property
    def replicas(self) -> list[int]:
        """The processes of replicas."""
        return sorted(pid for pid in descendants(self.process.pid) if REPLICA in _title(pid))

    def cpu_seconds(self) -> CpuSeconds:
        """What was computed so far, by the clients in this process, too."""
        replicas, own = self.replicas, os.times()
        others = {os.getpid(): own.user + own.system}
        for pid in {self.process.pid, *descendants(self.process.pid)} - set(replicas):
            with suppress(OSError):  # it has ended meanwhile
                others[pid] = cpu_seconds(pid)
        return CpuSeconds({pid: thread_seconds(pid) for pid in replicas}, others)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/v1/stats", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def end(self) -> int:
        """As an operator ends it: the exit code."""
        self.process.send_signal(signal.SIGTERM)
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


def descendants(pid: int) -> Iterable[int]:
    """The processes that a process started, and those that they started."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it ended meanwhile
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
