"""Router alignment: after the layers before it are quantised, the gate still makes its old choices.

Arriving rows are not those the gate was trained on. It is fitted anew, by least squares, to give the
float model's scores from the rows that now arrive (arXiv 2505.21411); a ridge around the old gate
keeps what the rows say nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGES = (0.003, 0.03, 0.3)  # of the mean square of a channel


@dataclass(frozen=True, slots=True)
class Alignment:
    """gate: float32 [E, H]. before, after: shares of the held-out rows' choices that are the float
    model's, with the old gate and with this one. ridge: None where the old gate stayed."""

    gate_EH: Tensor
    before: float
    after: float
    ridge: float | None


def align(gate_EH: Tensor, x_NH: Tensor, scores_NE: Tensor, groups: int) -> Alignment:
    """The gate that agrees best with the float model's scores on every other row.

    x: the rows that the quantised model brings. The rest of the rows is what it is fitted to. The
    old gate stays unless another one, in numbers that bfloat16 holds, agrees more.
    """
    fit, held = slice(0, None, 2), slice(1, None, 2)
    goal, rest = scores_NE[held], x_NH[held]
    before = agreement(F.linear(rest, gate_EH), goal, groups)
    best, after, ridge = gate_EH, before, None
    x = x_NH[fit].double()
    gram = x.T @ x / len(x)
    missing = scores_NE[fit].double() - x @ gate_EH.double().T
    pull = x.T @ missing / len(x)
    size = gram.diagonal().mean()
    for strength in RIDGES:
        within = gram + torch.eye(len(gram), dtype=gram.dtype) * (strength * size).clamp_min(1e-12)
        fitted = (gate_EH + torch.linalg.solve(within, pull).T.float()).bfloat16().float()
        found = agreement(F.linear(rest, fitted), goal, groups)
        if found > after:
            best, after, ridge = fitted, found, strength
    return Alignment(best, before, after, ridge)


def agreement(scores_NE: Tensor, goal_NE: Tensor, groups: int) -> float:
    """Share of (row, group) pairs whose likeliest expert is the same."""
    if not len(goal_NE):
        return 1.0
    mine, theirs = (s.view(len(s), groups, -1).argmax(-1) for s in (scores_NE, goal_NE))
    return float((mine == theirs).float().mean())
