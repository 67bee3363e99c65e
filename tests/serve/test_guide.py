"""The page on serving, as a newcomer follows it: its commands start a real server, and its blocks run in order.

A tiny checkpoint has the name of the page's model, and the server a free port. Pip is not run; what it is asked
for must be there.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from guide_desk import MODEL, Desk, needs_programs, write_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "serving.md"
SAID = {  # what the curl commands of the page bring
    "/v1/chat/completions": '"object":"chat.completion"', "/health": '{"status":"ok"}',
    "/ready": '{"ready":true,"why":""}', "/version": f'"model":"{MODEL}"',
    "/metrics": "vllm:spec_decode_num_accepted_tokens_total", "/v1/models": f'"id":"{MODEL}:fast"',
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder."""
    needs_programs("bash", "curl")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def check(text: str, printed: str) -> None:
    for path in re.findall(r"^curl.*?//[\d.:]+(/\S*)", text, re.MULTILINE):
        assert SAID[path] in printed, printed


def follow(desk: Desk) -> None:
    desk.follow()
    assert desk.ran == len(re.findall("^```", PAGE.read_text("utf-8"), re.MULTILINE)) / 2 and desk.ran > 15


@pytest.mark.slow
def test_the_page_can_be_followed(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    follow(Desk(PAGE, check, folder, str(write_model(model)), ["--kv-memory", "32MiB"]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (folder / "pip.txt").read_text().split() == ["install", ".[serve]", "openai", "anthropic"]
    assert "serve" in project["optional-dependencies"]
    assert "fs-" not in (folder / "serve.log").read_text()  # no key is in the log
