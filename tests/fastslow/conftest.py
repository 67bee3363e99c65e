"""Fixtures for tests of the public face: an engine of a tiny model. A file may give its chat TEMPLATE, the PRESETS of
its fastslow.json, and OPTIONS of its `LLM`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_chat
from gate import Gate, open_llm, settled

from fastslow import LLM


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, to be read only."""
    template, presets = (getattr(request.module, name, None) for name in ("TEMPLATE", "PRESETS"))
    if template is None:
        return tiny_chat
    return write_chat(tmp_path_factory.mktemp("moge"), template, presets)


@pytest.fixture(scope="module")
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LLM]:
    with open_llm(folder, **getattr(request.module, "OPTIONS", {})) as llm:
        yield llm


@pytest.fixture
def gate(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(llm, monkeypatch)
    yield gate
    gate.open()
    assert settled(llm)
