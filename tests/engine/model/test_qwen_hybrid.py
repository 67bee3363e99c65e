"""Qwen3.5 and Qwen3-Next: gated delta nets beside attention with gates, dense or with experts."""

from __future__ import annotations

from pathlib import Path

import peer_models as peers
import pytest
from family_tools import KERNELS, LONG, check_however_cut, load

NAMES = [name for name in peers.SHAPES if name.startswith(("qwen3_5", "qwen3_next"))]
SHAPES = [pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers_however_a_text_is_cut(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs = peers.build(name)
    model = load(peers.write(tmp_path, theirs), kernels)
    check_however_cut(model, peers.logprobs(theirs, LONG), 40 if name in peers.FIRST else 600)
