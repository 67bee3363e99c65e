"""A drafter of an installed package is asked for by its name, as a built-in one is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cli_tools import record
from fastapi.testclient import TestClient
from processes_served import address, command, wait_ready
from refusals import refused
from serve_tools import open_tiny, write_tiny

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft import installed, registry
from fastslow.draft.registry import DRAFTERS, drafter_names
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine
from fastslow.tools.tune.candidates import default_drafters

MODULE = """
from fastslow.draft.base import BaseDrafter
from fastslow.draft.registry import DrafterKind
from fastslow.engine.types import Tree

class EchoDraft(BaseDrafter):
    def propose(self, batch, nodes):
        return [Tree.chain(request.tokens[-1:] * n) for request, n in zip(batch, nodes)]

ECHO = DrafterKind(lambda settings, deps: EchoDraft(), help="the last token", likely_cause="no echo")
NOT_ONE = "echo"
"""
ENTRIES = """
[fastslow.drafters]
echo = echo_drafter:ECHO
broken = echo_drafter.missing:ECHO
wrong = echo_drafter:NOT_ONE
suffix = echo_drafter:ECHO
auto = echo_drafter:ECHO
two-words = echo_drafter:ECHO
"""
SIXTY = SamplingParams(max_tokens=60, ignore_eos=True)
BODY = {"model": "tiny", "prompt": "one two", "max_tokens": 60, "ignore_eos": True}
TREES = {"drafter": "echo", "nodes": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with open_tiny(tiny) as llm:
        yield llm


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of installed packages, with one that brings drafters, and another that wants a name of it."""
    for name, entries in (("echo_drafter", ENTRIES), ("other", "[fastslow.drafters]\necho = other:X\n")):
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(entries)
    (tmp_path / "echo_drafter.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(DRAFTERS)
    _forget()
    yield tmp_path
    DRAFTERS.clear()
    DRAFTERS.update(before)
    _forget()
    sys.modules.pop("echo_drafter", None)


def _forget() -> None:
    registry._installed.cache_clear()
    installed.load.cache_clear()


def test_it_drafts_in_python(package: Path, llm: LLM) -> None:
    plain = llm.generate("one two", SIXTY, speculation="off")
    for wish in ("echo", "suffix|echo", "echo+ngram", Speculation(drafter="echo", nodes=4)):
        out = llm.generate("one two", SIXTY, speculation=wish)
        assert out.token_ids == plain.token_ids
    assert out.metrics.drafter == "echo" and out.metrics.drafted >= 100
    refused(r"^drafter='ecko' is unknown; did you mean 'echo'\?$", llm.generate, "one two", SIXTY, speculation="ecko")


def test_it_is_imported_when_it_is_named(package: Path, llm: LLM) -> None:
    assert drafter_names()[-3:] == ["echo", "broken", "wrong"]
    llm.generate("one two", SIXTY)
    assert "echo_drafter" not in sys.modules
    assert "echo" in [setting.drafter for setting in default_drafters(llm)]  # of `fastslow bench`
    assert "echo_drafter" in sys.modules


def test_a_name_that_is_taken_is_refused(package: Path, llm: LLM, logged: list[str]) -> None:
    builtin = DRAFTERS["suffix"]
    for _ in range(2):
        refused("unknown", llm.generate, "one two", SIXTY, speculation="two-words")
    assert DRAFTERS["suffix"] is builtin
    said = sorted(line.strip() for line in logged if "refused" in line)
    assert said == [
        "drafter 'auto' of echo-drafter 1.5 is refused: its name is taken",
        "drafter 'echo' of other 1.5 is refused: its name is taken",
        "drafter 'suffix' of echo-drafter 1.5 is refused: its name is taken",
        "drafter 'two-words' of echo-drafter 1.5 is refused: its name is no identifier",
    ]


@pytest.mark.parametrize(("name", "why"), [
    ("broken", "ModuleNotFoundError: No module named 'echo_drafter.missing'"),
    ("wrong", "echo_drafter:NOT_ONE is no DrafterKind"),
])  # fmt: skip
def test_one_that_does_not_load_ends_its_own_request(
    package: Path, llm: LLM, logged: list[str], name: str, why: str
) -> None:
    for wish in (name, f"suffix|{name}"):
        with pytest.raises(ValueError) as refused:
            llm.generate("one two", SIXTY, speculation=wish)
        said = str(refused.value)
        assert said.startswith(f"drafter '{name}' of echo-drafter 1.5 does not load: {why}")
        assert "\n" not in said
    assert len([line for line in logged if "does not load" in line]) == 1
    assert len(llm.generate("one two", SIXTY, speculation="echo").token_ids) == 60


def test_it_drafts_over_http(package: Path, llm: LLM) -> None:
    client = TestClient(create_app(LocalEngine(llm, "tiny")), base_url="http://localhost")
    for wish in ("echo", "echo+suffix", TREES):
        answer = client.post("/v1/completions", json={**BODY, "speculation": wish})
        assert answer.status_code == 200, answer.text
    answer = client.post("/v1/completions", json={**BODY, "speculation": "broken"})
    assert answer.status_code == 400 and "does not load" in answer.json()["error"]["message"]


def test_it_drafts_on_the_command_line(package: Path, tiny: Path) -> None:
    words = ("one two", "--model", tiny, "--drafter", "echo", "--nodes", 4, "--raw")
    assert record("generate", *words, "--max-tokens", 60)["metrics"]["drafter"] == "echo"


@pytest.mark.slow
def test_it_drafts_in_a_server_of_its_own_process(package: Path, tiny: Path) -> None:
    paths = os.pathsep.join([str(package), os.getcwd()])
    with command(*(tiny, "--port", 0, "--speculation", "echo"), environment={"PYTHONPATH": paths}) as process:
        wait_ready(url := address(process))
        answer = httpx.post(f"{url}/v1/completions", json={**BODY, "speculation": TREES}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert 'drafter="echo"' in httpx.get(f"{url}/metrics", timeout=60).text
