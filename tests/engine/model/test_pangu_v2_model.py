"""openPangu Pro MoE V2 against an independent, naive model."""

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
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.tools.cli.app import app
from fastslow.tools.plan.published import KNOWN

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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_rope_dim": 7}, "qk_rope_dim 7 must be even"),
        ({"v_channels": 32}, "v_channels 32 must be at most 24"),
        ({"num_experts_per_tok": 11}, "num_experts_per_tok 11 must be at most num_experts 10"),
        ({"rotary_layout": "odd"}, "rotary_layout 'odd' is not one of interleaved-first"),
        ({"qkv_bias": True}, "qkv_bias True is not supported"),
        ({"param_sink_number": -1}, "param_sink_number -1 must be a whole number of at least 0"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**MOE, **fields}))
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_folder(tmp_path)


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


def test_the_published_model_counts_as_published() -> None:
    """openPangu-R-72B-2512: "74B-A15B", by its public config.json."""
    config = ModelConfig.from_json(KNOWN["openpangu-r-72b"])
    assert round(parameters(config) / 1e9) == 74
    assert round(active_parameters(config) / 1e9) == 15
