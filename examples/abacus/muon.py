"""Muon for matrices (Jordan et al., 2024: the momentum made orthogonal), AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON = (3.4445, -4.7750, 2.0315)  # its author's quintic: steep at 0, near 1 elsewhere
STEPS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly, of a stack [N, rows, columns]."""
    a, b, c = NEWTON
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For parameters [rows, columns] or stacks [N, rows, columns]."""

    def __init__(self, params: list[nn.Parameter], lr: float, decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(state["momentum"], group["momentum"])
                alike[p.shape[-2:]].append((p, ahead.view(-1, *p.shape[-2:])))
            for (rows, columns), members in alike.items():
                turned = orthogonal(torch.cat([ahead for _, ahead in members]))
                # whatever the form, entries move alike (Liu et al., arXiv 2502.16982)
                size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                parts = turned.split([len(ahead) for _, ahead in members])
                for (p, _), part in zip(members, parts, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(part.view_as(p), alpha=-size)


def optimizers(model: nn.Module, matrix_lr: float, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head, router, norms and biases."""
    apart = ("embed_tokens", "lm_head", "mlp.gate", "router_scale")
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim > 1 and not n.endswith(apart)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        Muon(matrices, matrix_lr),
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
