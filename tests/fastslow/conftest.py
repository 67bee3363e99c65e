"""What tests of the public face share: an engine of a tiny model. A file may give its chat TEMPLATE, the PRESETS of
its fastslow.json, and OPTIONS of its `LLM`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_moge
from gate import Gate, open_llm, settled
from tokenizers_tiny import write_bpe

from fastslow import LLM


@pytest.fixture(scope="module")
def folder(
    request: pytest.FixtureRequest, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint, to be read only."""
    template, presets = (getattr(request.module, name, None) for name in ("TEMPLATE", "PRESETS"))
    if template is None:
        return tiny_chat
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, template, 320)
    if presets is not None:
        (folder / "fastslow.json").write_text(json.dumps(presets), "utf-8")
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32)


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
