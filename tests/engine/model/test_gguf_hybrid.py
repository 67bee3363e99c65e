"""GGUF files of gated delta nets: what files have applied or ordered otherwise, and the layer that drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from gguf_hybrid import HYBRID, write_hybrid
from gguf_tools import write_gguf

from fastslow.engine.backends.loader import load_model

LONG = texts.tokens_of(150)


def logprobs(path: Path, **options: Any) -> torch.Tensor:
    return texts.logits(load_model(path, **options), LONG).double().log_softmax(-1)


@pytest.mark.parametrize("name", HYBRID)
def test_a_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    folder = write_hybrid(tmp_path / "model", name)
    file = write_gguf(folder, tmp_path / "m.gguf")
    torch.testing.assert_close(logprobs(file), logprobs(folder), rtol=0, atol=1e-4)
