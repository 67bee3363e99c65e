"""What tests of the public face share: an engine of a tiny model, which a file may replace by its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import Gate, open_llm, settled

from fastslow import LLM


@pytest.fixture(scope="module")
def folder(tiny_chat: Path) -> Path:
    """A checkpoint, to be read only."""
    return tiny_chat


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with open_llm(folder) as llm:
        yield llm


@pytest.fixture
def gate(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(llm, monkeypatch)
    yield gate
    gate.open()
    assert settled(llm)
