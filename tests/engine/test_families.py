"""Every family against transformers' own classes, with random weights, on a text longer than a window."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import texts
import torch

from fastslow.engine.backends import loader
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import unsupported
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig

LENGTH = 100  # beyond yarn's original length of 64
KERNELS = (False,)
SHAPES = [
    pytest.param(name, marks=() if name in peers.FIRST else pytest.mark.slow)
    for name in peers.SHAPES
]


def load(folder: Path, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> Model:
    """In float32, on plain torch or on the CPU kernels; skips what the kernels do not run."""
    if kernels and (reason := unsupported(ModelConfig.from_folder(folder))) is not None:
        pytest.skip(reason)
    if kernels and not library.available():
        pytest.skip("no kernels")
    monkeypatch.setattr(loader.library, "available", lambda: kernels)
    return loader.load_model(folder, "float32")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_logprobs_are_those_of_transformers(
    name: str, kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, tokens = peers.build(name), texts.tokens_of(LENGTH)
    expected = peers.logprobs(theirs, tokens)
    model = load(peers.write(tmp_path, theirs), kernels, monkeypatch)
    got = texts.logits(model, tokens).double().log_softmax(-1)
    assert expected.std() > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_experts_in_mxfp4_run_as_transformers_reads_them(
    kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, tokens = peers.build("gpt_oss"), texts.tokens_of(LENGTH)
    peers.pack_experts(peers.write(tmp_path, theirs), theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = peers.logprobs(theirs, tokens)
    model = load(tmp_path, kernels, monkeypatch)
    got = texts.logits(model, tokens).double().log_softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
