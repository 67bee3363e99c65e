"""Which routed experts rows run, found on the device: no step waits for the host."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.ops import ExpertChoice
from fastslow.engine.model.shape import Router


def choose_on_device(
    logits_TE: Tensor, scale_E: Tensor, groups: int, wanted_T: Tensor
) -> ExpertChoice:
    """As `engine.model.moge.choose`, all of it on the device: experts int32 [T, G], weights [T, G].

    wanted_T: integer [T], how many groups run for each row. What does not run has the number E, one
    more than there are, and no weight. Ties are broken by comparing, not by a library's order.
    """
    probs = logits_TE.softmax(-1)
    count = probs.shape[1]
    size = count // groups
    each = probs.view(-1, groups, size)
    best = each.amax(-1, keepdim=True)
    number = torch.arange(size, dtype=torch.int32, device=probs.device)
    first = torch.where(each == best, number, size - 1).amin(-1)
    offsets = torch.arange(0, count, size, dtype=torch.int32, device=probs.device)
    experts = first + offsets
    weights = best[..., 0] * scale_E.index_select(0, experts.flatten()).view(experts.shape)
    # a group's rank: how many weigh more, or as much and come first
    mine, theirs = weights[:, :, None], weights[:, None, :]
    place = torch.arange(groups, device=probs.device)
    ahead = (theirs > mine) | ((theirs == mine) & (place[None, :] < place[:, None]))
    runs = ahead.sum(-1) < wanted_T[:, None]
    return ExpertChoice(torch.where(runs, experts, count), torch.where(runs, weights, 0.0))


def choose_best_on_device(
    logits_TE: Tensor, choice_bias_E: Tensor | None, router: Router, wanted_T: Tensor
) -> ExpertChoice:
    """The best `router.top_k` experts of all, the best first, the lower number on a tie.

    wanted_T: how many of them run for each row; the weights are divided by the sum of those.
    """
    count, sigmoid = logits_TE.shape[1], router.kind == "sigmoid"
    scores = logits_TE.sigmoid() if sigmoid else logits_TE  # a softmax keeps their order
    ranked = scores if choice_bias_E is None else scores + choice_bias_E
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    experts = order[:, : router.top_k]
    runs = torch.arange(router.top_k, device=experts.device) < wanted_T[:, None]
    as_they_are = router.kind == "softmax" and not router.normed
    weights = (logits_TE.softmax(-1) if as_they_are else scores).gather(-1, experts)
    if not sigmoid and not as_they_are:  # of the chosen alone: what the others have cancels out
        weights = (weights - weights[:, :1]).exp()
    weights = weights.masked_fill(~runs, 0)
    if router.normed or router.kind == "chosen":
        # a row that runs none divides nothing by one
        weights = weights / weights.sum(-1, keepdim=True).masked_fill(~runs[:, :1], 1)
    numbers = torch.where(runs, experts, count).to(torch.int32)
    return ExpertChoice(numbers, weights * router.scale)
