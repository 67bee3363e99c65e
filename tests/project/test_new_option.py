"""A request option is two edits: those of docs/extend.md, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/extend.md"
DIFF = re.compile(r"^```diff\n--- ([\w/.]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = """
import inspect

from fastapi.testclient import TestClient

from fastslow import LLM
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.app import create_app

options = {"max_tokens": 24}
for call in (LLM.generate, LLM.chat, LLM.submit, LLM.stream_chat):
    assert "no_drafts" in inspect.signature(call).parameters
    assert "no_drafts: plain decoding" in call.__doc__
with LLM("abacus", kv_memory="16MiB", progress=False) as llm:
    fixed = {"drafter": "ngram", "nodes": 4}  # else it drafts what pays, which may be nothing
    usual = llm.generate("7 7 7 7 7 7 7 7", options, speculation=fixed)
    plain = llm.generate("7 7 7 7 7 7 7 7", options, speculation=fixed, no_drafts=True)
    assert usual.metrics.drafted and not plain.metrics.drafted
    both = llm.generate(["7 7 7 7", "8 8 8 8"], options, speculation="ngram", no_drafts=[True, False])
    assert both[0].metrics.drafter == "off" and both[1].metrics.drafter == "ngram"
    client = TestClient(create_app(LocalEngine(llm, "abacus")), base_url="http://localhost")
    asked = {"messages": [{"role": "user", "content": "7 7 7 7"}], "max_tokens": 8}
    for flag, drafter in ((True, "off"), (False, "ngram")):
        body = {**asked, "speculation": "ngram", "no_drafts": flag}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["metrics"]["drafter"] == drafter
    wrong = client.post("/v1/chat/completions", json={**asked, "no_drafts": 1})
    assert wrong.status_code == 400 and "no_drafts=1 must be a valid boolean" in wrong.text
"""


def edited(text: str, diff: str) -> str:
    """A file after an edit, whose lines it holds once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with the page's edits."""
    package = tmp_path / "fastslow"
    shutil.copytree(ROOT / "fastslow", package, symlinks=True)
    for link in [path for path in package.iterdir() if path.is_symlink()]:
        link.unlink()
        link.symlink_to(ROOT / link.name)
    edits = DIFF.findall(PAGE.read_text("utf-8"))
    assert len(edits) == 2, "one field and its use"
    for name, diff in edits:
        path = tmp_path / name
        path.write_text(edited(path.read_text("utf-8"), diff), "utf-8")
    return tmp_path


def test_the_pages_edits_fit(copy: Path) -> None:
    texts = [path.read_text("utf-8") for path in (copy / "fastslow").rglob("*.py")]
    assert sum("no_drafts" in text for text in texts) == 2


@pytest.mark.slow
def test_a_new_option_is_two_edits(copy: Path) -> None:
    own, command = {**os.environ, "PYTHONPATH": str(copy)}, [sys.executable, "-c", PROGRAM]
    subprocess.run(command, cwd=copy, env=own, check=True)
