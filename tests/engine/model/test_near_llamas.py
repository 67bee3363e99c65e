"""Dense models that differ from Llama in a few fields, against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peer_models as peers
import pytest
import texts
import torch
from family_tools import KERNELS, LONG, load
from torch import Tensor

from fastslow.engine.model.base import Model

FIRST = tuple({kind: name for name, (kind, _) in reversed(peers.NEAR.items())}.values())
SHAPES = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in peers.NEAR]


def made(folder: Path, name: str, kernels: bool, **fields: Any) -> tuple[Model, Any]:
    """Our model, and that of transformers."""
    theirs = peers.build(name, **{"max_position_embeddings": 1024, **fields})
    peers.write(folder, theirs)
    if name == "mimo":  # Qwen2, but for a layer that drafts
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MiMoForCausalLM"]}))
    return load(folder, kernels), theirs


def near(found: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 1
    torch.testing.assert_close(found.double().log_softmax(-1), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    """In one chunk, and to the same bits in several and token by token at the end."""
    model, theirs = made(tmp_path, name, kernels)
    whole = texts.logits(model, LONG, max_len=600)
    near(whole, peers.logprobs(theirs, LONG))
    assert texts.logits(model, LONG, [37, 200, 343] + [1] * 20, max_len=600).equal(whole)
