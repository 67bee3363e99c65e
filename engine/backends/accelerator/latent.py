"""Latent attention for accelerators: the products of heads run side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.ops import Front, ModuleOps
from fastslow.engine.model.mixers.latent import LatentAttention, LatentModule


class PagedLatent(LatentModule):
    """`LatentModule` with a key of all heads in blocks. Layers without an indexer attend over block tables."""

    def __init__(self, mixer: LatentAttention, weights: Any, ops: ModuleOps) -> None:
        super().__init__(mixer, weights, ops)
        # [heads, nope, latent], [heads, latent, values]
        sides = weights.absorb, weights.expand
        self._sides = [torch.stack([head.weight.T for head in side]) for side in sides]
        weights.absorb, weights.expand = [], []

    @property
    def seen_first(self) -> Front | None:
        """What every row sees before its text."""
        return None if self.sinks is None else Front(None, *self.sinks)

    def _absorbed(self, plain_PHD: Tensor) -> Tensor:
        return torch.bmm(plain_PHD.transpose(0, 1), self._sides[0]).transpose(0, 1)

    def _expanded(self, seen_PHC: Tensor) -> Tensor:
        return torch.bmm(seen_PHC.transpose(0, 1), self._sides[1]).transpose(0, 1).flatten(1)
