"""Downloads that are killed, stopped, or made by two processes at once; and the commands with a hub's name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import FakeHub, Repo, environment, running_hub

WEIGHTS = "model-00002-of-00002.safetensors"
RESOLVE = "from fastslow.models.locate import resolve_model; print(resolve_model('tiny/chat'))"


@pytest.fixture
def hub(tiny_chat: Path) -> Iterator[FakeHub]:
    """Its model's weights come in a second or more."""
    with running_hub(tiny__chat=Repo.of(tiny_chat, slow={WEIGHTS: 0.3})) as hub:
        yield hub


def start(hub: FakeHub, home: Path, *command: str) -> subprocess.Popen[str]:
    given = os.environ | environment(hub, home)
    out = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], env=given, stdin=out, stdout=out, stderr=out, text=True
    )


def until_weights_come(hub: FakeHub) -> None:
    while not any(WEIGHTS in asked for asked in hub.asked if "/cdn/" in asked):
        time.sleep(0.01)
    time.sleep(0.2)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_download_that_ends_early(how: signal.Signals, hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["tiny/chat"].slow[WEIGHTS] = 5.0  # of each quarter
    process = start(hub, tmp_path, "-m", "fastslow", "generate", "abc", "--model", "tiny/chat")
    until_weights_come(hub)
    process.send_signal(how)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert time.monotonic() - began < 5.0 and "Traceback" not in said
    snapshot = next(tmp_path.glob("hub/models--tiny--chat/snapshots/*"))
    halves = list(tmp_path.rglob("*.incomplete"))
    assert not (snapshot / WEIGHTS).exists() and len(halves) == (how == signal.SIGKILL)
    hub.repos["tiny/chat"].slow, before = {}, list(hub.fetched)
    hub.asked.clear()
    found, said = start(hub, tmp_path, "-c", RESOLVE).communicate(timeout=60)
    assert found.strip() == str(snapshot), said
    assert WEIGHTS in hub.fetched and not set(hub.fetched) & set(before) - {WEIGHTS}
    data = hub.repos["tiny/chat"].files[WEIGHTS]
    assert (snapshot / WEIGHTS).read_bytes() == data


@pytest.mark.slow
def test_two_processes_at_once(hub: FakeHub, tmp_path: Path) -> None:
    both = [start(hub, tmp_path, "-c", RESOLVE) for _ in range(2)]
    found = {process.communicate(timeout=120)[0] for process in both}
    assert len(found) == 1 and "snapshots" in found.pop()
    got = [asked for asked in hub.asked if asked.startswith("GET /cdn/")]
    assert len(got) == len(set(got)), "each file came once"


@pytest.mark.slow
def test_the_commands(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["tiny/chat"].slow = {}
    chat = start(hub, tmp_path, "-m", "fastslow", "chat", "tiny/chat", "--max-tokens", "4")
    answer, said = chat.communicate("abc\n", timeout=120)
    assert chat.returncode == 0 and answer and "licence apache-2.0" in said, said
    hub.repos["tiny/chat"].gated = True
    gated = start(hub, tmp_path / "other", "-m", "fastslow", "inspect", "tiny/chat")
    _, said = gated.communicate(timeout=120)
    assert gated.returncode == 2 and "is gated: accept its terms at" in said
