"""openPangu Pro MoE V2 against an independent, naive model; `test_mtp.py` has its draft layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from pangu_v2_tools import MOE, write_moe
from reference_model import ReferenceModel
from typer.testing import CliRunner

from fastslow.engine.backends.loader import load_model
from fastslow.tools.cli.app import app

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "no sinks": {"param_sink_number": 0},
    "sinks of zero value": {"param_sink_with_value": False},
    "no sandwich": {"sandwich_norm": False},
    "no bias, no norm": {"router_enable_expert_bias": False, "norm_topk_prob": False},
    "halves last": {"rotary_layout": "halves-last"},
    "all rotated": {"qk_nope_dim": 8, "qk_rope_dim": 16, "rotary_layout": "halves-last"},
    "many sinks": {"param_sink_number": 130},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_probabilities_are_the_references(tmp_path: Path, name: str) -> None:
    folder = write_moe(tmp_path, **VARIANTS[name])
    tokens = texts.tokens_of(13)
    expected = ReferenceModel(folder).logits(tokens).log_softmax(-1)
    got = texts.logits(load_model(folder, "float32"), tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    exact = texts.logits(load_model(folder, "float64"), tokens).log_softmax(-1)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("normed", [True, False])
def test_the_best_of_fewer_experts(tmp_path: Path, normed: bool) -> None:
    folder = write_moe(tmp_path, norm_topk_prob=normed)
    model, plain, tokens = load_model(folder, "float32"), ReferenceModel(folder), texts.tokens_of(9)
    found = []
    for count in (None, 0, 1, 2, 3, 9):
        logits = texts.logits(model, tokens, groups=count).double()
        expected = plain.logits(tokens, count).log_softmax(-1)
        torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=0, atol=1e-4)
        found.append(logits)
    assert torch.equal(found[0], found[4]) and torch.equal(found[0], found[5]), "all is all"
    assert len({float(logits[-1, 0]) for logits in found[:4]}) == 4


def test_inspect_names_its_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path)]).output
    assert "best 3 of 10, each of 32; shared 64; dense layers: 1" in shown
    assert " dense " not in shown.split("description")[1]
