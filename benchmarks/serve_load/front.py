"""`fastslow serve` as a program."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

CHECKOUT = Path(__file__).parents[2]
START = 240.0  # seconds that the model has to load
ADDRESS = re.compile(r" is served at (http://\S+?),")


class Front:
    """The command, once it answers. It serves `model` as "measured"."""

    def __init__(self, model: str, arguments: Sequence[str] = ()) -> None:
        command = ["-m", "fastslow", "serve", model, "--served-model-name", "measured"]
        paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
        )
        self.said: list[str] = []
        addresses: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(addresses,), daemon=True).start()
        try:
            self.address = addresses.get(timeout=START)
        except queue.Empty:
            self.address = ""
        if not self.address:
            self.end()
            raise RuntimeError("\n".join(["the server did not start", *self.said[-20:]]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """As an operator ends it."""
        self.process.send_signal(signal.SIGTERM)  # nothing, if it has ended
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self, addresses: queue.Queue[str]) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            del self.said[:-2000]
            if found := ADDRESS.search(line):
                addresses.put(found[1])
        addresses.put("")  # it has ended
