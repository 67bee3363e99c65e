"""Models of every family on several ranks say what one rank says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pangu_v2_tools
import pytest
import texts
import torch
from checkpoints import FAMILIES, write_family
from parallel_tools import ranks
from torch import Tensor

from fastslow.engine.backends.loader import load_model

SIZES = (30, *[1] * 4, 6)
MIXTURES = ("qwen3_moe", "gpt_oss", "pangu_v2")
FIELDS: dict[str, dict[str, Any]] = {"qwen3_moe": {"norm_topk_prob": False}}


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(
        found.double().log_softmax(-1), wanted.double().log_softmax(-1), atol=1e-4, rtol=0
    )


def check(folder: Path, family: str, layout: str, **fields: Any) -> None:
    if family == "pangu_v2":
        made = pangu_v2_tools.write_moe(folder, num_experts=12, v_channels=8)
    else:
        made = write_family(folder, family, **fields)
    plain, tokens = load_model(made, "float64", "cpu"), texts.tokens_of(sum(SIZES))
    with ranks(made, layout) as model:
        # all on the last copy of attention
        slots = np.arange(len(tokens)) + (model.storage.dp_ranks - 1) * len(tokens)
        for wanted in (None, 1, 2) if family in MIXTURES else (None,):
            found = texts.logits(model, tokens, SIZES, groups=wanted, slots=slots)
            near(found, texts.logits(plain, tokens, groups=wanted))


@pytest.mark.parametrize(("family", "layout"), [("gpt_oss", "ep=2"), ("qwen3_moe", "tp=2")])
def test_a_mixture(tmp_path: Path, family: str, layout: str) -> None:
    check(tmp_path, family, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp=2", "dp=2", "tp=4"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MIXTURES])
def test_dense_families(tmp_path: Path, family: str, layout: str) -> None:
    check(tmp_path, family, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ep=4", "tp=4", "dp=2", "ep=2,tp=2", "ep=2,dp=2"])
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures(tmp_path: Path, family: str, layout: str) -> None:
    check(tmp_path, family, layout, **FIELDS.get(family, {}))
