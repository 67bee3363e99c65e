"""The example of several machines: an answer continues when a host is lost, and no host stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from network import why_not
from serve_engines import write_served

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_machines.py"
PATIENCE = 400  # seconds

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _hosts_can_be_made() -> None:
    if reason := why_not():
        pytest.skip(reason)


def spaces() -> set[str]:
    """The network namespaces of this machine."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_an_answer_goes_on_when_a_host_is_lost(how: str, tmp_path: Path) -> None:
    process = start(write_served(tmp_path), "--tokens", 3000, "--lose", how)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    assert f"{how} fs" in printed and printed.endswith("the answer is the same\n")
    assert not any(name.startswith(f"fs{process.pid}-") for name in spaces())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_all_hosts_down(number: int, tmp_path: Path) -> None:
    process = start(write_served(tmp_path))

    def own() -> set[str]:
        return {name for name in spaces() if name.startswith(f"fs{process.pid}-")}

    while len(own()) < 5:  # four hosts and the switch
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 130
    assert not own()
