"""The choice of experts where it must not wait for the host."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_on_device(
    logits_TE: Tensor, scale_E: Tensor, groups: int, wanted_T: Tensor
) -> tuple[Tensor, Tensor]:
    """As `engine.model.router.choose`, all of it on the device: experts int32 [T, G], weights [T, G].

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
    return torch.where(runs, experts, count), torch.where(runs, weights, 0.0)
