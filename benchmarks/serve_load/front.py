"""`fastslow serve` as a program."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESS = re.compile(r" is served at (http://\S+?),")


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of the command, once it answers. It serves `model` as "measured", and ends as by an operator."""
    command = ["-m", "fastslow", "serve", model, "--served-model-name", "measured", "--port", "0"]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := ADDRESS.search(line):
                break
        else:
            raise RuntimeError("".join(["the server did not start\n", *said[-20:]]))
        rest = threading.Thread(target=deque, args=(process.stderr, 0))
        rest.start()
        try:
            yield found[1]
        finally:
            process.terminate()
            rest.join()
