"""Downloads that are killed, stopped, or made by two processes at once."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from hub import FakeHub, Repo, running_hub

WEIGHTS = "model-00002-of-00002.safetensors"
RESOLVE = "from fastslow.models.locate import resolve_model; print(resolve_model('tiny/chat'))"


@pytest.fixture
def hub(tiny_chat: Path) -> Iterator[FakeHub]:
    with running_hub(tiny__chat=Repo.of(tiny_chat, wrong={("slow", WEIGHTS): 0.3})) as hub:
        yield hub


def start(hub: FakeHub, home: Path, *command: str) -> Popen[str]:
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    return Popen([sys.executable, *command], env=os.environ | ours, stdout=PIPE, stderr=PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_download_that_ends_early(how: signal.Signals, hub: FakeHub, tmp_path: Path) -> None:
    repo = hub.repos["tiny/chat"]
    repo.wrong["slow", WEIGHTS] = 30.0  # of each quarter: longer than anybody waits here
    process = start(hub, tmp_path, "-m", "fastslow", "generate", "abc", "--model", "tiny/chat")
    begun, folder = f"GET /cdn/tiny/chat/{WEIGHTS}", "hub/models--tiny--chat"
    while not (
        begun in hub.asked  # and all others are there
        and len(list(tmp_path.rglob("*.incomplete"))) == 1
        and len(list(tmp_path.glob(f"{folder}/snapshots/*/*"))) == len(repo.files) - 1
    ):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130) and "Traceback" not in said
    snapshot = next(tmp_path.glob(f"{folder}/snapshots/*"))
    halves = list(tmp_path.rglob("*.incomplete"))
    assert not (snapshot / WEIGHTS).exists() and len(halves) == (how == signal.SIGKILL)
    repo.wrong.clear()
    hub.asked.clear()
    found, said = start(hub, tmp_path, "-c", RESOLVE).communicate(timeout=60)
    assert found.strip() == str(snapshot), said
    assert hub.fetched == [WEIGHTS], "what was whole stays"
    assert (snapshot / WEIGHTS).read_bytes() == repo.files[WEIGHTS]


@pytest.mark.slow
def test_two_processes_at_once(hub: FakeHub, tmp_path: Path) -> None:
    both = [start(hub, tmp_path, "-c", RESOLVE) for _ in range(2)]
    found = {process.communicate(timeout=120)[0] for process in both}
    got = [asked for asked in hub.asked if asked.startswith("GET /cdn/")]
    assert len(found) == 1 and "snapshots" in found.pop() and len(got) == len(set(got))
