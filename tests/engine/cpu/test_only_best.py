"""Where only the best token is wanted, it is that of all logits, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled, wanted

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best
from fastslow.engine.types import Ints, ModelOutput

VOCAB = 1000  # not whole tiles
FORMATS = [("float32", "none"), ("bfloat16", "none")]
if wanted():
    FORMATS += [("bfloat16", "int8"), ("bfloat16", "int4")]


def write(folder: Path, spread: float = 1.0, sick: float | None = None) -> Path:
    """A dense checkpoint with a head of its own, in which every token has a twin further on.

    spread: how much the last norm stretches some inputs of the head, against which int8 is coarse.
    sick: a value for one weight of the head.
    """
    config = {**checkpoints.DENSE, "vocab_size": VOCAB, "hidden_size": 96}
    table = checkpoints.tensors(config, seed=3)
    head = table["lm_head.weight"]
    head[VOCAB // 2 :] = head[: VOCAB // 2].flip(0)
    if sick is not None:
        head[700, 5] = sick
    table["model.norm.weight"][::17] *= spread
    return checkpoints.write(folder, config, table)


def run(model: Model, only_best: Ints, seed: int = 0) -> ModelOutput:
    """One text for each mark."""
    return texts.single_tokens(model, texts.tokens_of(len(only_best), seed, VOCAB), only_best)


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_the_best_token_is_the_first_of_the_largest_logits(
    tmp_path: Path, dtype: str, quantization: str, spread: float
) -> None:
    model = load_model(write(tmp_path, spread), dtype, quantization=quantization)
    for count in (1, 2, 5, 13, 16, 40):
        for seed in range(3):
            whole = run(model, np.zeros(count, dtype=np.int64), seed)
            assert (whole.best == -1).all()
            best = whole.logits.argmax(-1).numpy()
            assert (best < VOCAB // 2).all()  # the first of twins
            assert run(model, np.ones(count, dtype=np.int64), seed).best.tolist() == best.tolist()
            some = np.arange(count) % 3 % 2
            mixed = run(model, some, seed)
            assert mixed.best.tolist() == np.where(some, best, -1).tolist()
            assert torch.equal(mixed.logits[some == 0], whole.logits[some == 0])


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
@pytest.mark.parametrize("sick", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_have_no_best(
    tmp_path: Path, dtype: str, quantization: str, sick: float
) -> None:
    model = load_model(write(tmp_path, sick=sick), dtype, quantization=quantization)
    for count in (1, 20):
        out = run(model, np.ones(count, dtype=np.int64))
        assert (out.best == -1).all()


@compiled
def test_a_bfloat16_head_is_screened_only_where_no_logits_are_wanted(tmp_path: Path) -> None:
    model = load_model(write(tmp_path), "bfloat16")
    assert isinstance(model, CpuDecoder)
    for marks, screened in ((np.ones(3), 1), (np.array([1, 0, 1]), 0), (np.ones(40), 0)):
        run(model, marks.astype(np.int64))
        assert library.kernels().fs_screened(model._handle) == screened


def test_a_step_needs_no_logits_only_while_nothing_shapes_them() -> None:
    def asks(**fields: Any) -> bool:
        view: Any = SimpleNamespace(
            params=SamplingParams(**fields),
            tokens=[1] * 7,
            prompt_length=3,
            thinking=None,
            grammar=None,
        )
        return only_best(view)

    assert asks() and asks(min_tokens=4)
    for field in (
        {"temperature": 0.5},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"logit_bias": {1: 2.0}},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 5},
    ):
        assert not asks(**field), field
