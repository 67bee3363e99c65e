"""The folder in which a reader of the pages sits."""

import json
import shutil
from pathlib import Path

import pytest

from fastslow.models.locate import builtin_path


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with every file that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(builtin_path("abacus"), tmp_path / "moge")
    (tmp_path / "my.json").write_text(json.dumps({"modes": {"brief": {"base": "deep", "thinking_budget": 200}}}))
    settings = {"version": 1, "speculation": {"drafter": "suffix", "nodes": 2}}
    (tmp_path / "tuned.json").write_text(json.dumps(settings))
    turns = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    (tmp_path / "answers.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    return tmp_path
