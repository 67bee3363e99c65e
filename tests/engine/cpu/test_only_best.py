"""The best token, where only this is wanted, is that of all logits, bit for bit; also where a bfloat16 head is screened
in int8 before it is read, whatever its rows are."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled, wanted
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint import checkpoint
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import only_best

HIDDEN = 96  # no whole tiles
ROWS = 16  # of a step; more are not screened
STEPS = 12
SIZES = (70, 997)  # no whole tiles of 32
FORMATS = [("float32", "none"), ("bfloat16", "none")]
if wanted():
    FORMATS += [("bfloat16", "int8"), ("bfloat16", "int4")]


def test_a_step_needs_no_logits_only_while_nothing_shapes_them() -> None:
    def asks(**fields: Any) -> bool:
        view: Any = SimpleNamespace(
            params=SamplingParams(**fields), tokens=[1] * 7, prompt_length=3, thinking=None, thought_params=None,
            grammar=None,
        )  # fmt: skip
        return only_best(view)

    assert asks() and asks(min_tokens=4)
    for field in (
        {"temperature": 0.5}, {"logprobs": 0}, {"prompt_logprobs": 1}, {"logit_bias": {1: 2.0}},
        {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}, {"min_tokens": 5},
    ):  # fmt: skip
        assert not asks(**field), field


def few(rows: Tensor) -> Tensor:
    """The first three; the others are zeros, and the best wherever these three are below 0."""
    return torch.where(torch.arange(len(rows))[:, None] < 3, rows, 0)


def scaled(rows: Tensor, *powers: int) -> Tensor:
    """Each row by one of some powers of ten, in turn."""
    return rows * torch.tensor([10.0**power for power in powers])[torch.arange(len(rows)) % len(powers)][:, None]


def mostly_zero(rows: Tensor) -> Tensor:
    """As a vocabulary that was padded: zeros after the tokens, which are all unlikely."""
    half = len(rows) // 2
    return torch.cat([-rows[:half].abs(), torch.zeros_like(rows[half:])])


def outlier(rows: Tensor) -> Tensor:
    """Make one weight of each row so large that int8 has nothing left for the others."""
    found = rows.clone()
    found[torch.arange(len(rows)), torch.arange(len(rows)) * 7 % HIDDEN] *= 3e4
    return found


def mixed(rows: Tensor) -> Tensor:
    kinds = [few(rows), scaled(rows, -39, -37, -30, 0), outlier(rows), -rows, rows.flip(0)]
    which = torch.randint(len(kinds), (len(rows),), generator=torch.Generator().manual_seed(5))
    return torch.stack(kinds)[which, torch.arange(len(rows))]


HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda rows: rows, "few": few, "none": torch.zeros_like, "padded": mostly_zero,
    "one of many": lambda rows: few(rows)[torch.arange(len(rows)) // 2],
    "ties": lambda rows: rows[torch.arange(len(rows)) // 3],
    "signs": lambda rows: torch.cat([rows[::2], -rows[::2]])[: len(rows)],
    "few signs": lambda rows: torch.cat([few(rows)[::2], -few(rows)[::2]])[: len(rows)],
    "tiny": lambda rows: scaled(rows, -25), "tiny and few": lambda rows: scaled(few(rows), -25, -20, -30),
    "near the smallest": lambda rows: scaled(rows, -37, -36, -35),
    "denormal": lambda rows: scaled(rows, -39, -38, -40),
    "denormal beside few": lambda rows: few(rows) + scaled(rows, -39), "huge": lambda rows: scaled(rows, 30),
    "near the largest": lambda rows: scaled(rows, 34),
    "every size": lambda rows: scaled(rows, -39, -30, -20, -10, 0, 3), "outlier": outlier, "mixed": mixed,
}  # fmt: skip


def write(folder: Path, kind: str, size: int, spread: float = 1.0, sick: float | None = None) -> Path:
    """A dense checkpoint with a head of some kind.

    spread: how much the last norm stretches some inputs of the head, against which int8 is coarse.
    sick: a value for one weight of the head.
    """
    config = {**checkpoints.DENSE, "vocab_size": size, "hidden_size": HIDDEN}
    table = checkpoints.tensors(config, seed=size)
    head = table["lm_head.weight"] = HEADS[kind](table["lm_head.weight"]).contiguous()
    if sick is not None:
        head[50, 3] = sick
    table["model.norm.weight"][::17] *= spread
    return checkpoints.write(folder, config, table)


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_the_best_token_is_the_first_of_the_largest_logits(
    tmp_path: Path, dtype: str, quantization: str, spread: float
) -> None:
    """Also where others of the step want their logits."""
    model = load_model(write(tmp_path, "ties", 997, spread), dtype, quantization=quantization)
    for count, seed in product((1, 2, 5, 13, 16, 40), range(3)):
        tokens, some = texts.tokens_of(count, seed, 997), np.arange(count) % 3 % 2
        whole = texts.single_tokens(model, tokens, [False] * count)
        best = whole.logits.argmax(-1).numpy()
        assert (whole.best == -1).all() and (best % 3 == 0).all()
        assert texts.single_tokens(model, tokens, [True] * count).best.tolist() == best.tolist()
        mixed = texts.single_tokens(model, tokens, some)
        assert mixed.best.tolist() == np.where(some, best, -1).tolist()
        assert torch.equal(mixed.logits[some == 0], whole.logits[some == 0])


@compiled
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", HEADS)
def test_the_screened_best_is_the_whole_heads(tmp_path: Path, kind: str, size: int) -> None:
    """192 comparisons each, 6,912 in all."""
    model = load_model(write(tmp_path, kind, size), "bfloat16")
    for seed in range(STEPS):
        tokens = texts.tokens_of(ROWS, seed, size)
        logits = texts.single_tokens(model, tokens, [False] * ROWS).logits
        want = torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1).tolist()
        assert texts.single_tokens(model, tokens, [True] * ROWS).best.tolist() == want
        assert kind != "none" or want == [0] * ROWS


@compiled
def test_a_head_is_screened_only_where_no_logits_are_wanted(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, "plain", SIZES[1]), "bfloat16")
    assert isinstance(model, CpuDecoder)
    for marks, screened in (([1] * 3, 1), ([1, 0, 1], 0), ([1] * 40, 0)):
        texts.single_tokens(model, texts.tokens_of(len(marks)), marks)
        assert library.kernels().fs_screened(model._handle) == screened


@pytest.mark.parametrize(("dtype", "quantization"), FORMATS)
@pytest.mark.parametrize("kind", ["plain", "few"])
@pytest.mark.parametrize("sick", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_have_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, quantization: str, kind: str, sick: float
) -> None:
    """Also among rows that nothing bounds."""
    monkeypatch.setattr(checkpoint, "_finite", lambda name, tensor: tensor)  # else it is not loaded
    model = load_model(write(tmp_path, kind, SIZES[0], sick=sick), dtype, quantization=quantization)
    for count in (1, ROWS, 20):
        assert (texts.single_tokens(model, texts.tokens_of(count, 0, SIZES[0]), [True] * count).best == -1).all()
