"""Muon for matrices, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

from fastslow.tools.train_head.muon import Muon

DECAY = 0.02


def optimizers(
    model: nn.Module, matrix_lr: float, lr: float, products: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head, router, norms and biases.

    products: dtype of Muon's.
    """
    apart = ("embed_tokens", "lm_head", "mlp.gate", "router_scale")
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim > 1 and not n.endswith(apart)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        Muon(matrices, matrix_lr, DECAY, products),
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
