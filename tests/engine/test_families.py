"""Every family against transformers' own classes, with random weights, on a text longer than a window."""

from __future__ import annotations

import json
from pathlib import Path

import peer_models as peers
import pytest
import texts
import torch
from family_tools import KERNELS, load

from fastslow.engine.model.base import Model

LENGTH = 100  # beyond yarn's original length of 64
SHAPES = [
    pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow)
    for name in peers.SHAPES
]


def assert_same(model: Model, tokens: list[int], expected: torch.Tensor) -> None:
    got = texts.logits(model, tokens).double().log_softmax(-1)
    assert expected.std() > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs, tokens = peers.build(name), texts.tokens_of(LENGTH)
    model = load(peers.write(tmp_path, theirs), kernels)
    assert_same(model, tokens, peers.logprobs(theirs, tokens))


@pytest.mark.parametrize("kernels", KERNELS)
def test_experts_in_mxfp4_run_as_transformers_reads_them(kernels: bool, tmp_path: Path) -> None:
    theirs, tokens = peers.build("gpt_oss"), texts.tokens_of(LENGTH)
    peers.pack_experts(peers.write(tmp_path, theirs), theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(load(tmp_path, kernels), tokens, peers.logprobs(theirs, tokens))
