"""Every family against transformers' own classes, with random weights, on a text longer than a window."""

from __future__ import annotations

import json
from pathlib import Path

import peer_models as peers
import pytest
import texts
import torch
from family_tools import KERNELS, load
from kernel_tools import compiled

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.loader import load_model
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


def write_mxfp4(folder: Path) -> tuple[list[int], torch.Tensor]:
    """A text, and its log-probabilities under the model that is written."""
    theirs, tokens = peers.build("gpt_oss"), texts.tokens_of(LENGTH)
    peers.pack_experts(peers.write(folder, theirs), theirs)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return tokens, peers.logprobs(theirs, tokens)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(name: str, kernels: bool, tmp_path: Path) -> None:
    theirs, tokens = peers.build(name), texts.tokens_of(LENGTH)
    model = load(peers.write(tmp_path, theirs), kernels)
    assert_same(model, tokens, peers.logprobs(theirs, tokens))


@pytest.mark.parametrize("kernels", KERNELS)
def test_experts_in_mxfp4_run_as_transformers_reads_them(kernels: bool, tmp_path: Path) -> None:
    tokens, expected = write_mxfp4(tmp_path)
    assert_same(load(tmp_path, kernels), tokens, expected)


@compiled
def test_experts_in_mxfp4_are_packed_as_they_are(tmp_path: Path) -> None:
    tokens, expected = write_mxfp4(tmp_path)
    model = load_model(tmp_path, device="cpu", quantization="auto")
    assert isinstance(model, CpuDecoder)
    matrix = model._matrix("0.expert1.down")
    assert matrix.format == Format.MXFP4
    found = texts.logits(model, tokens).log_softmax(-1)
    assert (found - expected).std() < 0.15 * expected.std()  # activations are in int8
