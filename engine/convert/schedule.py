from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.engine.convert.dense import POSITIONS


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    minutes: wall-clock minutes, writing of text included; the learning rate follows this clock
        because the machine may be shared.
    rate: Adam's learning rate of the low-rank deltas; router and norms take `router_rate` and
        `norm_rate`.
    warm_up: steps of linear warm-up.
    row: tokens of a row; rows: rows of a step.
    prose: share of steps on human text.
    visits: times that written rows are visited before more are written.
    written: tokens the dense model writes, in `rounds` rounds of `batch` rows.
    mix: pairs of a share of the groups and its probability; each row draws one.
    """

    minutes: float = 80.0
    rate: float = 1.5e-3
    router_rate: float = 4e-4
    norm_rate: float = 1e-3
    warm_up: int = 20
    row: int = 288
    rows: int = 4
    prose: float = 0.35
    visits: int = 3
    written: int = 166_000
    batch: int = 96
    mix: tuple[tuple[float, float], ...] = (
        (0.0, 0.05), (0.125, 0.03), (0.25, 0.24), (0.375, 0.05), (0.5, 0.18), (0.75, 0.05),
        (1.0, 0.40),
    )  # fmt: skip
    seed: int = 0

    def __post_init__(self) -> None:
        if self.row * self.rows > POSITIONS:
            raise ValueError(f"row * rows must be at most {POSITIONS}, got {self.row * self.rows}")


def draw_groups(
    rows: int, row: int, groups: int, mix: tuple[tuple[float, float], ...], source: random.Random
) -> Tensor:
    """Groups of every token, int64 [rows, row]; mostly one number a row.

    Half of the rows without routed groups get all groups on every second token at random: a
    drafter that runs the shared expert alone reads keys and values that all groups wrote.
    """
    shares, chances = zip(*mix, strict=True)
    drawn = torch.zeros(rows, row, dtype=torch.int64)
    for index in range(rows):
        count = round(source.choices(shares, chances)[0] * groups)
        if count == 0 and source.random() < 0.5:
            drawn[index] = torch.randint(0, 2, (row,)) * groups
        else:
            drawn[index] = count
    return drawn
