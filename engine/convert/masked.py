from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 16.0  # router logits are divided by it: a power of two, so bfloat16 loses nothing
SHARPNESS = 2.0  # of the soft choice that only the backward pass sees


class LowRankLinear(torch.autograd.Function):
    """y = x (W + B A)^T with W frozen: one matmul forward, skinny ones for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weight = frozen + (b @ a).to(frozen.dtype)
        ctx.save_for_backward(x, weight, a, b)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        dy = grads[0].flatten(0, -2)
        flat = x.flatten(0, -2)
        dx = (dy @ weight).view_as(x)
        db = dy.T @ (flat @ a.T.to(flat.dtype))
        da = (dy @ b.to(dy.dtype)).T @ flat
        return dx, None, da.to(a.dtype), db.to(b.dtype)


class GatedProduct(torch.autograd.Function):
    """h = silu(gate) * up, its last neurons (those of the pools) times `mask`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, mask)
        h = F.silu(gate).mul_(up)
        h[..., -mask.shape[-1] :].mul_(mask)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, mask = ctx.saved_tensors
        dh = grads[0]
        pool = mask.shape[-1]
        act = F.silu(gate)
        dmask = dh[..., -pool:] * act[..., -pool:] * up[..., -pool:]
        dh = torch.cat((dh[..., :-pool], dh[..., -pool:] * mask), -1)
        dup = act.mul_(dh)
        dgate = torch.ops.aten.silu_backward(dh.mul_(up), gate)
        return dgate, dup, dmask


class Gate(torch.nn.Module):
    """Grouped router of one layer, as a mask over the pool neurons.

    The forward pass is the MoGE rule (Tang et al., arXiv 2505.21411): softmax over all experts in
    float32, the best expert of each group, its weight p * router_scale without renormalisation;
    of the groups only the `groups` with the largest weights run, ties to the lower group. The
    backward pass sees soft choices (straight-through, Bengio et al., arXiv 1308.3432).

    Args:
        router: [groups * experts, hidden] float32, before division by TEMPERATURE.
        scale: [groups * experts] float32.
        member: [groups, experts, pool] 1.0 where the neuron belongs to the expert.
    """

    member: Tensor

    def __init__(self, router: Tensor, scale: Tensor, member: Tensor) -> None:
        super().__init__()
        self.router = torch.nn.Parameter(router.float().clone())
        self.log_scale = torch.nn.Parameter(scale.float().log())
        self.register_buffer("member", member.to(torch.bfloat16))

    def forward(self, x_BTH: Tensor, groups_BT: Tensor) -> Tensor:
        """Mask [B, T, groups * pool], in the dtype of `x_BTH`."""
        count, experts, _ = self.member.shape
        # the written router is bfloat16: round here too, and pass the gradient through
        router = self.router + (self.router.bfloat16().float() - self.router).detach()
        score = F.linear(x_BTH.float(), router)
        p = torch.softmax(score / TEMPERATURE, -1)
        p_BTGE = torch.unflatten(p, -1, (count, experts))
        score_BTGE = torch.unflatten(score, -1, (count, experts))
        chosen = p_BTGE.argmax(-1, keepdim=True)
        soft = torch.softmax(score_BTGE * SHARPNESS, -1)
        hard = torch.zeros_like(soft).scatter_(-1, chosen, 1.0)
        pick = hard + soft - soft.detach()
        scale = self.log_scale.exp().view(count, experts)
        weight = (p_BTGE * scale).gather(-1, chosen).squeeze(-1)
        run = run_mask(weight, groups_BT)
        members = self.member.to(x_BTH.dtype)
        neurons = torch.einsum("btge,gen->btgn", pick.to(x_BTH.dtype), members)
        return (neurons * (weight * run).to(x_BTH.dtype).unsqueeze(-1)).flatten(-2)


def run_mask(weight_BTG: Tensor, groups_BT: Tensor) -> Tensor:
    """1.0 for the `groups` largest weights of each row, with a soft gradient at the boundary."""
    count = weight_BTG.shape[-1]
    order = torch.sort(weight_BTG, dim=-1, descending=True, stable=True)
    rank = torch.argsort(order.indices, dim=-1)
    hard = (rank < groups_BT.unsqueeze(-1)).to(weight_BTG.dtype)
    log = order.values.log().detach()
    below = log.gather(-1, groups_BT.clamp(1, count - 1).unsqueeze(-1))
    above = log.gather(-1, (groups_BT.clamp(1, count - 1) - 1).unsqueeze(-1))
    distance = (weight_BTG.log() - (above + below) / 2) * (TEMPERATURE / 2)
    soft = torch.sigmoid(distance)
    inside = ((groups_BT > 0) & (groups_BT < count)).unsqueeze(-1)
    return hard + torch.where(inside, soft - soft.detach(), 0.0)
