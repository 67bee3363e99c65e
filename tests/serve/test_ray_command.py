"""`fastslow serve --replicas`: it serves, drains and ends, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes_served import address, command, wait_ready
from ray_engines import descendants, living
from serve_engines import write_served

pytestmark = pytest.mark.slow
PATIENCE = 180  # seconds
BODY = {"model": "tiny", "prompt": "one two", "max_tokens": 12, "mode": "fast", "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("served"))


def all_gone(pids: list[int], seconds: float = 30) -> bool:
    """Whether soon none of these lives."""
    end = time.monotonic() + seconds
    while living(pids) and time.monotonic() < end:
        time.sleep(0.2)
    return not living(pids)


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
        assert all_gone(pids)


def test_a_killed_command_leaves_no_process(folder: Path) -> None:
    with command(folder, "--port", 0, "--replicas", 1, "--kv-memory", "16MiB") as server:
        wait_ready(address(server))
        pids = [server.pid, *descendants(server.pid)]
        assert len(pids) > 4
        server.kill()
        server.wait()
        assert all_gone(pids, 90), "Ray's agents try to tell of it for a minute"


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with command(tmp_path / "missing", "--port", 0, "--replicas", 2) as server:
        _, said = server.communicate(timeout=PATIENCE)
        assert server.returncode == 2 and "missing" in said and "Traceback" not in said


def test_an_address_where_nobody_is(folder: Path) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 2, "--address", "127.0.0.1:9"]
    with command(folder, *options) as server:
        _, said = server.communicate(timeout=PATIENCE)
        assert server.returncode == 1 and "nothing is reached at the address" in said
