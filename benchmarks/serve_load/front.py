"""`fastslow serve` as a program, and its replicas' processes; and the engine without a server."""

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
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
REPLICAS = b"ServeReplica", b"serve.engines.process.child"  # of the title of a replica's process
START = 240.0  # seconds that models have to load
ADDRESS = re.compile(r" is served at (http://\S+?),")


class Front:
    """The command, once it answers. It serves `model` as "measured".

    replicas: how many must run before it counts as started; 0: it runs without Ray.
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
    def replicas(self) -> list[int]:
        """The processes of replicas."""
        return sorted(
            pid
            for pid in descendants(self.process.pid)
            if any(map(_title(pid).__contains__, REPLICAS))
        )

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
    """bare.py, loaded: an engine without a server. `options`: of `LLM`."""

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
