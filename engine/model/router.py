"""Routers: one expert per group, or the best of all.

MoGE: Pangu Pro MoE, arXiv 2505.21411. A bias for the choice alone: Wang et al., arXiv 2408.15664.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.types import Ints


class Choice(NamedTuple):
    """Per row and group (or place among the best): the expert's number, its weight, and whether it
    runs; each [P, G]."""

    experts: Tensor  # int64
    weights: Tensor  # float32, float64 for a float64 model
    runs: NDArray[np.bool_]

    def within(self, groups: range, size: int) -> Choice:
        """Only these groups, of `size` experts each, whose experts are counted from the first."""
        own = slice(groups.start, groups.stop)
        firsts = groups.start * size
        return Choice(self.experts[:, own] - firsts, self.weights[:, own], self.runs[:, own])


def choose(logits_PE: Tensor, scale_E: Tensor, groups: int, wanted: Ints) -> Choice:
    """Softmax over all experts, then the likeliest of each group (the first on an exact tie).

    An expert's weight is its probability times its `scale`; nothing is renormalised. wanted:
    int64 [P], how many groups run for each row: those of largest weight, the lower group first on
    a tie; ALL_GROUPS or `groups` and more mean all.
    """
    probs = logits_PE.softmax(-1)
    size = probs.shape[1] // groups
    best = probs.view(-1, groups, size).max(-1)
    firsts = torch.arange(0, groups * size, size, device=probs.device)
    experts = best.indices + firsts
    weights = best.values * scale_E.index_select(0, experts.flatten()).view(experts.shape)
    runs = np.ones(tuple(weights.shape), dtype=np.bool_)
    cut = (wanted >= 0) & (wanted < groups)
    if cut.any():
        order = np.argsort(-weights.cpu().numpy()[cut], axis=1, kind="stable")
        rank = np.argsort(order, axis=1)
        runs[cut] = rank < wanted[cut, None]
    return Choice(experts, weights, runs)


def choose_best(
    logits_PE: Tensor, bias_E: Tensor, count: int, normed: bool, factor: float, wanted: Ints
) -> Choice:
    """The `count` experts of the largest sigmoid plus bias, the lower number on an exact tie.

    Their weights are the sigmoids alone, divided by their sum if `normed`, times `factor`. wanted:
    int64 [P], ALL_GROUPS, or 0 for a row that runs none.

    Raises:
        ValueError: a row that wants some of them: they are one group.
    """
    if ((wanted > 0) & (wanted < count)).any():
        few = int(wanted[(wanted > 0) & (wanted < count)][0])
        raise ValueError(f"groups={few} must be None: all experts of this model are one group")
    scores = logits_PE.neg().exp_().add_(1).reciprocal_()
    order = (scores + bias_E).sort(dim=-1, descending=True, stable=True).indices
    experts = order[:, :count].contiguous()
    weights = scores.gather(-1, experts)
    if normed:
        weights = weights / weights.sum(-1, keepdim=True)
    runs = np.repeat((wanted != 0)[:, None], count, axis=1)
    return Choice(experts, weights * factor, runs)
