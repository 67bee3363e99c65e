"""Latent attention for accelerators, by operators of torch: all heads see one key, whose part is their values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.ops import DeviceMatrix, PagedOps
from fastslow.engine.backends.accelerator.step import PagedStep
from fastslow.engine.model.mixers.latent import LatentAttention, LatentWeights


class PagedLatent:
    """What comes before and after attention over the latents of a text. The products of heads run side by side."""

    def __init__(
        self, mixer: LatentAttention, weights: LatentWeights[DeviceMatrix], ops: PagedOps
    ) -> None:
        self.mixer, self.weights, self.ops = mixer, weights, ops
        self._absorb = torch.stack(
            [head.weight.T for head in weights.absorb]
        )  # [heads, nope, latent]
        self._expand = torch.stack(
            [head.weight.T for head in weights.expand]
        )  # [heads, latent, values]
        weights.absorb, weights.expand = [], []

    def project(self, x_TH: Tensor, step: PagedStep) -> tuple[Tensor, Tensor]:
        """Queries [T, heads, latent + rotated], and what is kept of each row, [T, 1, latent + rotated]."""
        m, w, ops = self.mixer, self.weights, self.ops
        latent, key = ops.linear(x_TH, w.keys).split((m.latent, m.rope.dim), -1)
        latent = ops.rms_norm(latent.contiguous(), w.key_norm.weight, m.norm.eps)
        x_TI = x_TH
        if w.compress is not None and w.query_norm is not None:
            x_TI = ops.linear(x_TH, w.compress)
            x_TI = ops.rms_norm(x_TI, w.query_norm.weight, m.norm.eps)
        queries = ops.linear(x_TI, w.queries).view(len(x_TH), m.heads, -1)
        plain, turning = queries.split((m.nope, m.rope.dim), -1)
        both = torch.cat((turning, key[:, None]), 1).to(step.cos.dtype)
        turned = ops.rotate(both, step.cos, step.sin).to(x_TH.dtype)
        absorbed = torch.bmm(plain.transpose(0, 1), self._absorb).transpose(0, 1)
        queries = torch.cat((absorbed, turned[:, : m.heads]), -1)
        return queries, torch.cat((latent[:, None], turned[:, m.heads :]), -1)

    def out(self, seen_THC: Tensor) -> Tensor:
        """[T, hidden] of the latents that heads saw."""
        values = torch.bmm(seen_THC.transpose(0, 1), self._expand).transpose(0, 1)
        return self.ops.linear(values.flatten(1), self.weights.out)
