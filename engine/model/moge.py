"""The MLPs: dense, and MoGE with its routers (one expert per group, or the best of all)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ops import Dispatch, Experts, Ops, wide
from fastslow.engine.model.shape import Activation, Router
from fastslow.engine.types import Ints


class ExpertChoice(NamedTuple):
    """The experts that rows run: int32 [T, G], the number E stands for none, and their weights [T, G], 0
    where none; float32, float64 for a float64 model."""

    numbers: Tensor
    weights: Tensor


def choose(logits_TE: Tensor, scale_E: Tensor, groups: int, wanted_T: Tensor) -> ExpertChoice:
    """Softmax over all experts, then the likeliest of each group (the first on an exact tie).

    An expert's weight is its probability times its `scale`; nothing is renormalised. wanted_T: integer [T],
    how many groups run for each row: those of largest weight, the lower group first on a tie; ALL_GROUPS or
    `groups` and more mean all. No step waits for the host."""
    count = logits_TE.shape[1]
    size = count // groups
    each = logits_TE.softmax(-1).view(-1, groups, size)
    best = each.amax(-1, keepdim=True)
    number = torch.arange(size, dtype=torch.int32, device=each.device)
    first = torch.where(each == best, number, size - 1).amin(-1)
    experts = first + torch.arange(0, count, size, dtype=torch.int32, device=each.device)
    weights = best[..., 0] * scale_E.index_select(0, experts.flatten()).view(experts.shape)
    # a group's rank: how many weigh more, or as much and come first
    mine, theirs = weights[:, :, None], weights[:, None, :]
    place = torch.arange(groups, device=each.device)
    ahead = (theirs > mine) | ((theirs == mine) & (place[None, :] < place[:, None]))
    runs = ahead.sum(-1) < _limits(wanted_T, groups)
    return ExpertChoice(torch.where(runs, experts, count), torch.where(runs, weights, 0.0))


def choose_best(
    logits_TE: Tensor, router: Router, choice_bias_E: Tensor | None, wanted_T: Tensor
) -> ExpertChoice:
    """The `router.top_k` best experts of each row, the best first, the lower number on an exact tie.

    choice_bias_E: counts for the choice alone. wanted_T: as in `choose`, of the experts. Where the router
    divides weights by their sum, or takes a softmax of the chosen, it is that of those that run."""
    scores = router_scores(logits_TE, router)
    ranked = scores if choice_bias_E is None else scores + choice_bias_E
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    experts = order[:, : router.top_k].contiguous()
    place = torch.arange(router.top_k, device=experts.device)
    idle = place >= _limits(wanted_T, router.top_k)
    weights = scores.gather(-1, experts)
    if router.kind == "softmax" and not router.normed:
        weights = logits_TE.softmax(-1).gather(-1, experts)
    elif router.kind in ("softmax", "chosen"):  # what those that are not chosen have cancels out
        weights = weights.masked_fill(idle, -torch.inf).softmax(-1)
    elif router.normed:
        kept = weights.masked_fill(idle, 0.0)
        weights = kept / kept.sum(-1, keepdim=True)
    numbers = experts.to(torch.int32).masked_fill(idle, logits_TE.shape[1])
    return ExpertChoice(numbers, (weights * router.scale).masked_fill(idle, 0.0))


def _limits(wanted_T: Tensor, most: int) -> Tensor:
    return torch.where(wanted_T < 0, most, wanted_T)[:, None]


def router_scores(logits_TE: Tensor, router: Router) -> Tensor:
    """Return the scores that choose experts, but for a bias of the choice; a softmax keeps the order of logits."""
    if router.kind != "sigmoid":
        return logits_TE
    if logits_TE.device.type != "cpu":
        return logits_TE.sigmoid()
    return logits_TE.neg().exp_().add_(1).reciprocal_()


@dataclass(slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)), gate and up stacked into one matrix [2F, H]. Shazeer, arXiv 2002.05202."""

    ops: Ops
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Activation = "silu"

    def __call__(self, x_PH: Tensor, wanted: Ints | None = None) -> Tensor:
        both = self.ops.linear(x_PH, self.gate_up, self.gate_up_bias)
        return self.ops.linear(self.ops.gated(both, self.activation), self.down, self.down_bias)


@dataclass(slots=True)
class Moge:
    """y = shared(x) + sum over the groups that run of weight * expert(x), in group order.

    The router, `gate`, runs in float32 (float64 for a float64 model). `held_groups`, `held_experts`: what
    this rank holds of them, where others hold the rest; None = all."""

    ops: Ops
    groups: int
    gate: Tensor  # [E, H] float32
    experts: Experts
    shared: Mlp | None
    scale: Tensor | None  # [E] float32
    gate_bias: Tensor | None = field(default=None, kw_only=True)  # [E] float32
    held_groups: range | None = field(default=None, kw_only=True)
    held_experts: range | None = field(default=None, kw_only=True)

    def __call__(self, x_PH: Tensor, wanted: Ints) -> Tensor:
        """[P, H] in the dtype of x. wanted: int64 [P], groups to run per row."""
        y_PH = torch.zeros_like(x_PH) if self.shared is None else self.shared(x_PH)
        if not wanted.any():
            return y_PH
        sums = wide(x_PH.dtype)
        logits_PE = self.ops.linear(x_PH.to(sums), self.gate, self.gate_bias)
        found = self._choose(logits_PE, torch.from_numpy(wanted).to(x_PH.device))
        numbers, weights = found.numbers.cpu().numpy(), found.weights
        if (held := self.held_groups) is not None:
            numbers, weights = (
                numbers[:, held.start : held.stop],
                weights[:, held.start : held.stop],
            )
        first = self._first_held(logits_PE.shape[1])
        runs = (numbers >= first) & (
            numbers < min(first + len(self.experts.gate_up), logits_PE.shape[1])
        )
        groups = runs.shape[1]
        entries = np.flatnonzero(runs)  # in [P * G], row by row
        if not len(entries):
            return y_PH
        dispatch, places = _dispatch(
            numbers.ravel()[entries].astype(np.int64) - first,
            entries // groups,
            len(self.experts.gate_up),
            self.ops.rows,
            x_PH.device,
        )
        out_RH = self.ops.experts(x_PH, self.experts, dispatch)
        parts = torch.zeros(runs.size, x_PH.shape[1], dtype=sums, device=x_PH.device)
        picked = out_RH.index_select(0, places).to(sums)
        parts.index_copy_(0, torch.from_numpy(entries).to(x_PH.device), picked)
        parts_PGH = parts.view(-1, groups, x_PH.shape[1])
        parts_PGH *= weights[..., None]
        total = y_PH.to(sums)
        for g in range(groups):
            total = total + parts_PGH[:, g]
        return total.to(x_PH.dtype)

    def _first_held(self, experts: int) -> int:
        if self.held_groups is not None:
            return self.held_groups.start * (experts // self.groups)
        return 0 if self.held_experts is None else self.held_experts.start

    def _choose(self, logits_PE: Tensor, wanted_P: Tensor) -> ExpertChoice:
        assert self.scale is not None
        return choose(logits_PE, self.scale, self.groups, wanted_P)


@dataclass(slots=True)
class BestOfAll(Moge):
    """The same with one group, of which a token runs the best `groups` experts. `scale`: the choice's bias."""

    router: Router

    def _choose(self, logits_PE: Tensor, wanted_P: Tensor) -> ExpertChoice:
        return choose_best(logits_PE, self.router, self.scale, wanted_P)


def _dispatch(
    experts: Ints, rows: Ints, count: int, step: int, device: torch.device
) -> tuple[Dispatch, Tensor]:
    """(expert, row) entries by expert, each share padded to a multiple of `step` with row 0; where each went."""
    order = np.argsort(experts, kind="stable")
    sizes = np.bincount(experts, minlength=count)
    padded = -(-sizes // step) * step
    stops = np.cumsum(padded)
    starts = stops - padded
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = starts[experts[order]] + ranks
    sources = np.zeros(int(stops[-1]), dtype=np.int64)
    sources[places] = rows
    used = np.flatnonzero(sizes)
    runs = list(zip(used.tolist(), starts[used].tolist(), stops[used].tolist(), strict=True))
    return Dispatch(torch.from_numpy(sources).to(device), runs), torch.from_numpy(places).to(device)
