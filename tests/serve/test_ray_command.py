"""`fastslow serve --replicas`: it serves, drains and ends, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_engines import descendants
from serve_engines import write_served

pytestmark = pytest.mark.slow
PATIENCE = 180  # seconds
BODY = {"model": "tiny", "prompt": "one two", "max_tokens": 12, "mode": "fast", "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("served"))


@contextmanager
def command(*words: object) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process group of its own."""
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastslow", "serve", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def address(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it says so."""
    assert process.stderr is not None
    for line in process.stderr:
        if "/ready says when" in line:
            return line.partition("/ready")[0]
    raise AssertionError("it ended")


def wait_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if httpx.get(f"{url}/ready").status_code == 200:
            return
        time.sleep(0.2)
    raise AssertionError("it is not ready")


def gone(pids: list[int]) -> bool:
    """Whether none of these lives; a zombie does not."""
    return not [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outside(pids: list[int]) -> set[str]:
    """Addresses at which these processes listen, other than this machine's loopback."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found - {
        "0100007F",
        "00000000000000000000000001000000",
        "0000000000000000FFFF00000100007F",
    }


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_leaves_no_process(folder: Path, end: signal.Signals) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 2, "--kv-memory", "16MiB"]
    with command(folder, *options, "--served-model-name", "tiny") as server:
        url = address(server)
        wait_ready(url)
        pids = [server.pid, *descendants(server.pid)]
        assert len(pids) > 4 and not outside(pids)
        texts = {
            httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).json()["choices"][0]["text"]
            for _ in range(6)
        }
        assert len(texts) == 1
        assert httpx.get(f"{url}/v1/stats").json()["replicas"]
        if end == signal.SIGINT:
            os.killpg(server.pid, end)  # as a terminal does
        else:
            server.send_signal(end)
        assert server.wait(PATIENCE) == 0
        until = time.monotonic() + 30
        while not gone(pids) and time.monotonic() < until:
            time.sleep(0.2)
        assert gone(pids)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with command(tmp_path / "missing", "--port", 0, "--replicas", 2) as server:
        _, said = server.communicate(timeout=PATIENCE)
        assert server.returncode == 2 and "missing" in said and "Traceback" not in said


def test_an_address_where_nobody_is(folder: Path) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 2, "--address", "127.0.0.1:9"]
    with command(folder, *options) as server:
        _, said = server.communicate(timeout=PATIENCE)
        assert server.returncode == 1 and "nothing is reached at the address" in said
