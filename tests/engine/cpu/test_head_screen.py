"""A bfloat16 head is screened in int8 before it is read; whatever its rows are, the best token is plain decoding's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import texts
import torch
from kernel_tools import compiled
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.types import ModelOutput

pytestmark = compiled
HIDDEN = 96
ROWS = 16  # of a step; more are not screened
STEPS = 20
SIZES = (70, 997)  # no whole tiles of 32


def few(rows: Tensor) -> Tensor:
    """The first three; the others are zeros, and the best wherever these three are below 0."""
    return torch.where(torch.arange(len(rows))[:, None] < 3, rows, 0)


def scaled(rows: Tensor, *powers: int) -> Tensor:
    """Each row by one of some powers of ten, in turn."""
    factors = torch.tensor([10.0**power for power in powers])
    return rows * factors[torch.arange(len(rows)) % len(powers)][:, None]


def mostly_zero(rows: Tensor) -> Tensor:
    """As a vocabulary that was padded: zeros behind the tokens, which are all unlikely."""
    half = len(rows) // 2
    return torch.cat([-rows[:half].abs(), torch.zeros_like(rows[half:])])


def outlier(rows: Tensor) -> Tensor:
    """One weight of a row is so large that int8 has nothing left for the others."""
    found = rows.clone()
    found[torch.arange(len(rows)), torch.arange(len(rows)) * 7 % HIDDEN] *= 3e4
    return found


def mixed(rows: Tensor) -> Tensor:
    kinds = [few(rows), scaled(rows, -39, -37, -30, 0), outlier(rows), -rows, rows.flip(0)]
    which = torch.randint(len(kinds), (len(rows),), generator=torch.Generator().manual_seed(5))
    return torch.stack(kinds)[which, torch.arange(len(rows))]


HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda rows: rows,
    "few": few,
    "none": torch.zeros_like,
    "padded": mostly_zero,
    "one of many": lambda rows: few(rows)[torch.arange(len(rows)) // 2],
    "ties": lambda rows: rows[torch.arange(len(rows)) // 3],
    "signs": lambda rows: torch.cat([rows[::2], -rows[::2]])[: len(rows)],
    "few signs": lambda rows: torch.cat([few(rows)[::2], -few(rows)[::2]])[: len(rows)],
    "tiny": lambda rows: scaled(rows, -25),
    "tiny and few": lambda rows: scaled(few(rows), -25, -20, -30),
    "near the smallest": lambda rows: scaled(rows, -37, -36, -35),
    "denormal": lambda rows: scaled(rows, -39, -38, -40),
    "denormal beside few": lambda rows: few(rows) + scaled(rows, -39),
    "huge": lambda rows: scaled(rows, 30),
    "near the largest": lambda rows: scaled(rows, 34),
    "every size": lambda rows: scaled(rows, -39, -30, -20, -10, 0, 3),
    "outlier": outlier,
    "mixed": mixed,
}  # fmt: skip


def write(folder: Path, kind: str, size: int) -> Path:
    config = {**checkpoints.DENSE, "vocab_size": size, "hidden_size": HIDDEN}
    table = checkpoints.tensors(config, seed=size)
    table["lm_head.weight"] = HEADS[kind](table["lm_head.weight"]).contiguous()
    return checkpoints.write(folder, config, table)


def step(model: Model, tokens: list[int], only_best: bool) -> ModelOutput:
    return texts.single_tokens(model, tokens, [only_best] * len(tokens))


def plain(logits: Tensor) -> list[int]:
    """The first of the likeliest; -1 where a logit is not finite."""
    best: list[int] = torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1).tolist()
    return best


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", HEADS)
def test_the_screened_best_is_the_whole_heads(tmp_path: Path, kind: str, size: int) -> None:
    """320 comparisons each, 11,520 in all."""
    model = load_model(write(tmp_path, kind, size), "bfloat16")
    for seed in range(STEPS):
        tokens = texts.tokens_of(ROWS, seed, size)
        want = plain(step(model, tokens, only_best=False).logits)
        assert step(model, tokens, only_best=True).best.tolist() == want
        assert kind != "none" or want == [0] * ROWS


@pytest.mark.parametrize("sick", [float("nan"), float("inf"), -float("inf")])
def test_among_rows_that_nothing_bounds_one_that_is_not_finite_shows(
    tmp_path: Path, sick: float
) -> None:
    folder = write(tmp_path, "few", SIZES[0])
    table = load_file(folder / "model.safetensors")
    table["lm_head.weight"][50, 3] = sick
    save_file(table, folder / "model.safetensors")
    model = load_model(folder, "bfloat16")
    assert (
        step(model, texts.tokens_of(ROWS, 0, SIZES[0]), only_best=True).best.tolist() == [-1] * ROWS
    )
