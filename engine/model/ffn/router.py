"""Routers of mixtures: a token's choice of its routed experts, one of each group, or the best of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.model.ops import sigmoid

ROUTER_KINDS = "softmax", "chosen", "sigmoid"


@dataclass(frozen=True, slots=True)
class GroupRouter:
    """Router of a MoGE (Tang et al., arXiv 2505.21411): experts lie in groups, of which each runs its likeliest one.

    A learned scale of each expert multiplies its weight."""

    groups: int
    unit: ClassVar[Literal["groups", "experts"]] = "groups"

    @property
    def chosen(self) -> int:
        """Experts that a token runs."""
        return self.groups

    @property
    def units(self) -> int:
        """Units that modes may run fewer of."""
        return self.groups

    def running(self, units: int | None) -> int:
        """Experts that a token runs under a mode; None: it cuts nothing."""
        return self.groups if units is None else min(units, self.groups)

    def misfits(self, experts: int) -> Iterator[str]:
        if self.groups < 1 or experts % self.groups:
            yield (
                f"num_experts {experts} must be a multiple of num_experts_per_tok {self.groups}, "
                "one expert per group"
            )


@dataclass(frozen=True, slots=True)
class Router:
    """Router of a mixture without groups that each run one.

    kind: "softmax": over all experts, of which the `top_k` largest are chosen; "chosen": over the `top_k`
    largest logits; "sigmoid": of each logit. choice_bias: a bias counts for the choice alone. normed: the
    chosen weights are divided by their sum. scale: what they are multiplied with then. bias: of the logits.
    weights_eps: of a sigmoid router, what is added to that sum.
    groups, kept_groups: experts lie in groups, and those of the best `kept_groups` groups can be chosen
    (DeepSeek-V3, arXiv 2412.19437); 0: all. group_best: experts of a group whose scores, added, rank it. A mode keeps
    fewer groups, and their share of the experts, rounded up.
    input_norm: the router reads rows of the residual stream, not those that the experts read: x / sqrt(mean(x^2) + eps)
    * gate.scale * H^-0.5, a learned scale [H]. per_expert_scale: what a chosen expert weighs, divided by the sum, is
    multiplied by a learned number of it, gate.per_expert_scale [E]."""

    kind: str
    top_k: int
    normed: bool = True
    scale: float = 1.0
    bias: bool = False
    choice_bias: bool = False
    groups: int = 0
    kept_groups: int = 0
    group_best: int = 2
    weights_eps: float = 0.0
    input_norm: RmsNorm | None = None
    per_expert_scale: bool = False

    @property
    def chosen(self) -> int:
        """Experts that a token runs."""
        return self.top_k

    @property
    def unit(self) -> Literal["groups", "experts"]:
        """The kind of what modes may run less of."""
        return "groups" if self.groups else "experts"

    @property
    def units(self) -> int:
        """Groups that are kept, or experts."""
        return self.kept_groups if self.groups else self.top_k

    def running(self, units: int | None) -> int:
        """Experts that a token runs under a mode; None: it cuts nothing."""
        kept = self.units if units is None else min(units, self.units)
        return -(-kept * self.top_k // self.units)

    def misfits(self, experts: int) -> Iterator[str]:
        if self.kind not in ROUTER_KINDS:
            yield f"a router of kind {self.kind!r} is not one of {', '.join(ROUTER_KINDS)}"
        if self.top_k < 1:
            yield f"num_experts_per_tok {self.top_k} must be at least 1"
        if self.top_k > experts:
            yield f"num_experts_per_tok {self.top_k} must be at most num_experts {experts}"
        if not self.groups:
            return
        if experts % self.groups:
            yield f"n_group {self.groups} must divide the {experts} experts"
        elif not 1 <= self.kept_groups <= self.groups:
            yield f"topk_group {self.kept_groups} must be from 1 to n_group {self.groups}"
        elif self.top_k > self.kept_groups * (experts // self.groups):
            yield f"num_experts_per_tok {self.top_k} are more than topk_group {self.kept_groups} has"


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

    choice_bias_E: counts for the choice alone. wanted_T: as in `choose`, of `router.units`. Where the router
    divides weights by their sum, or takes a softmax of the chosen, it is that of those that run."""
    scores = router_scores(logits_TE, router)
    ranked = scores if choice_bias_E is None else scores + choice_bias_E
    kept = _limits(wanted_T, router.units)
    if router.groups:
        ranked = _of_best_groups(ranked, router, kept)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    experts = order[:, : router.top_k].contiguous()
    place = torch.arange(router.top_k, device=experts.device)
    idle = place >= -(-kept * router.top_k // router.units)
    weights = (scores if router.kind == "sigmoid" else logits_TE).gather(-1, experts)
    if router.kind == "softmax" and not router.normed:
        weights = logits_TE.softmax(-1).gather(-1, experts)
    elif router.kind in ("softmax", "chosen"):  # what those that are not chosen have cancels out
        weights = weights.masked_fill(idle, -torch.inf).softmax(-1)
    elif router.normed:
        weights = weights.masked_fill(idle, 0.0)
        weights = weights / (weights.sum(-1, keepdim=True) + router.weights_eps)
    numbers = experts.to(torch.int32).masked_fill(idle, logits_TE.shape[1])
    return ExpertChoice(numbers, (weights * router.scale).masked_fill(idle, 0.0))


def _limits(wanted_T: Tensor, most: int) -> Tensor:
    return torch.where(wanted_T < 0, most, wanted_T.clamp(max=most))[:, None]


def _of_best_groups(ranked_TE: Tensor, router: Router, kept_T1: Tensor) -> Tensor:
    """The ranks, -inf outside the groups that are kept; of equal groups the lower number is."""
    grouped = ranked_TE.unflatten(-1, (router.groups, -1))
    best = grouped.topk(min(router.group_best, grouped.shape[-1]), dim=-1).values.sum(-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices[:, : router.kept_groups]
    runs = torch.arange(router.kept_groups, device=best.device) < kept_T1
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, order, runs)
    found: Tensor = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    return found


def router_scores(logits_TE: Tensor, router: Router) -> Tensor:
    """Return the scores that choose experts, but for a bias of the choice. A softmax keeps the order of logits, and is
    made where its numbers are added to others."""
    if router.kind == "softmax" and (router.choice_bias or router.groups):
        return logits_TE.softmax(-1)
    return sigmoid(logits_TE) if router.kind == "sigmoid" else logits_TE
