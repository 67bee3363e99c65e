"""The command `fastslow serve`, and other servers, in another process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 180  # seconds
SUPPORT = Path(__file__).parent


def free_port() -> int:
    """Find a port at which nobody listens now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def program(
    *words: object, environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A server in its own process group. What it prints is read as text, where no option says otherwise."""
    paths = [str(SUPPORT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}, text=True,
        start_new_session=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def command(
    *words: object, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[subprocess.Popen[str]]:
    """`fastslow serve`."""
    return program("-m", "fastslow", "serve", *words, environment=environment, stdout=None)


def address(process: subprocess.Popen[str]) -> str:
    """Read the URL at which the server listens, once it says so."""
    assert process.stderr is not None
    for line in process.stderr:
        if "/ready says when" in line:
            return line.partition("/ready")[0]
    raise AssertionError("it ended")


def wait_for(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def wait_ready(url: str) -> None:
    wait_for(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200)


def line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()
