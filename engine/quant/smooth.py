"""Expert-aware smoothing: large input channels give some of their size to the weights.

One vector per layer and site. Where experts share their input, it is what the router or any expert
demands at most in each channel (arXiv 2505.21411); a matrix' demand is that of SmoothQuant (arXiv
2211.10438), max|x|^a / max|w|^(1-a). Vectors are powers of two, so folding them into norms and
weights changes no bit of what a float model computes, and is free at inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.quant.layer import ROUTER, Tensors
from fastslow.engine.quant.linear import QuantLinear, quantise_tokens
from fastslow.engine.quant.sites import Site

STRENGTHS = (0.25, 0.35, 0.5, 0.65)  # exponents that are tried, besides no smoothing at all
BLOCK = 32
SAMPLES = 64  # rows of each matrix on which they are judged
SHARED_SAMPLES = 256  # of a matrix that reads every row


@dataclass(slots=True)
class Seen:
    """What the matrices of a layer were given: the largest size per channel, some rows, how many.

    Rows are those of the float model, spread over the texts. grams: float32 [I, I] of `wanted` inputs,
    the mean product of channels in rows of length 1: a few tokens have inputs a hundred times as long
    as others', and would be all that counts.
    """

    wanted: frozenset[str] = frozenset()
    grams: dict[str, Tensor] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, x_NI: Tensor) -> None:
        self.largest[name] = x_NI.abs().amax(0)
        self.counts[name] = len(x_NI)
        most = SAMPLES if ".experts." in name else SHARED_SAMPLES
        step = max(1, len(x_NI) // most)
        self.rows[name] = x_NI[::step][:most].clone()
        if name in self.wanted:
            alike = F.normalize(x_NI, dim=-1)
            self.grams[name] = alike.T @ alike / len(alike)


def vector(site: Site, tensors: Tensors, largest: Mapping[str, Tensor], strength: float) -> Tensor:
    """The smoothing vector of a site, float32 [P], powers of two around 1.

    largest: max|x| per channel of each consumer that saw rows. One that saw none asks for nothing:
    it is quantised by its weights alone.
    """
    demands = []
    for name in site.consumers:
        if name not in largest:
            continue
        inputs = site.demand(largest[name])
        weights = site.demand(tensors[f"{name}.weight"].abs().amax(0))
        asked = inputs.pow(strength) / weights.clamp_min(1e-12).pow(1 - strength)
        demands.append(torch.where((inputs > 0) & (weights > 0), asked, 0.0))
    whole = torch.stack(demands).amax(0) if demands else torch.zeros(0)
    live = whole > 0
    if not live.any():
        return torch.ones_like(whole)
    powers = whole.clamp_min(1e-30).log2()
    powers = (powers - powers[live].mean()).round_().clamp_(-24, 24)
    return torch.where(live, powers.exp2(), 1.0)


def error(site: Site, tensors: Tensors, seen: Seen, smooth: Tensor) -> float:
    """Mean over rows of the squared error of the site's products, relative to their size.

    Inputs are taken in int8 both per token and in blocks of 32, since devices differ in that. The
    router is not counted: it stays in float.
    """
    columns = site.columns(smooth)
    wrong, size = 0.0, 0
    for name in site.consumers:
        if name == ROUTER or name not in seen.rows:
            continue
        x, weight = seen.rows[name], tensors[f"{name}.weight"]
        exact = F.linear(x, weight)
        matrix = QuantLinear.of(weight * columns).dequantised()
        squares = exact.square().sum(-1).clamp_min(1e-30)
        for near in (in_tokens(x / columns), in_blocks(x / columns)):
            missed = (F.linear(near, matrix) - exact).square().sum(-1)
            wrong += float((missed / squares).sum())
        size += 2 * len(x)
    return wrong / max(size, 1)


def smooth_site(site: Site, tensors: Tensors, seen: Seen) -> tuple[float, Tensor | None]:
    """Fold the best vector for a site; returns its strength and what each column took.

    0 and None where no smoothing is as good.
    """
    if not any(name in seen.rows for name in site.consumers):
        return 0.0, None
    found = {a: vector(site, tensors, seen.largest, a) for a in STRENGTHS}
    errors = {a: error(site, tensors, seen, smooth) for a, smooth in found.items()}
    best = min(errors, key=errors.__getitem__)
    none = error(site, tensors, seen, torch.ones_like(found[best]))
    if errors[best] >= none:
        return 0.0, None
    site.fold(tensors, found[best])
    return best, site.columns(found[best])


def in_tokens(x_TI: Tensor) -> Tensor:
    """What int8 with a scale per row makes of rows."""
    rows, steps = quantise_tokens(x_TI)
    return rows.float() * steps[:, None]


def in_blocks(x_TI: Tensor) -> Tensor:
    """What int8 with a scale per 32 inputs makes of rows, as the CPU kernels take them."""
    parts = F.pad(x_TI, (0, -x_TI.shape[1] % BLOCK)).view(-1, BLOCK)
    return in_tokens(parts).view(len(x_TI), -1)[:, : x_TI.shape[1]]
