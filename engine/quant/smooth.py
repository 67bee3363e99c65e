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

STRENGTHS = (0.35, 0.5, 0.65, 0.8)  # exponents that are tried, besides no smoothing at all
SAMPLES = 64  # rows of each matrix on which they are judged
SHARED_SAMPLES = 256  # of a matrix that reads every row


@dataclass(slots=True)
class Seen:
    """What the matrices of a layer were given: the largest size per channel, some rows, how many.

    Rows are those of the float model, spread over the texts.
    """

    largest: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, x_NI: Tensor) -> None:
        self.largest[name] = x_NI.abs().amax(0)
        self.counts[name] = len(x_NI)
        most = SAMPLES if ".experts." in name else SHARED_SAMPLES
        step = max(1, len(x_NI) // most)
        self.rows[name] = x_NI[::step][:most].clone()


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
    """Squared error that W8A8 makes in the site's products, relative to their size.

    The router is not counted: it stays in float.
    """
    columns = smooth if site.places is None else smooth[site.places]
    wrong = size = 0.0
    for name in site.consumers:
        if name == ROUTER or name not in seen.rows:
            continue
        x, weight = seen.rows[name], tensors[f"{name}.weight"]
        exact = F.linear(x, weight)
        rows, steps = quantise_tokens(x / columns)
        near = F.linear(
            rows.float() * steps[:, None], QuantLinear.of(weight * columns).dequantised()
        )
        wrong += float((near - exact).square().sum())
        size += float(exact.square().sum())
    return wrong / max(size, 1e-30)


def smooth_site(site: Site, tensors: Tensors, seen: Seen) -> float:
    """Fold the best vector for a site; returns its strength, 0 where none is better than not to."""
    if not any(name in seen.rows for name in site.consumers):
        return 0.0
    found = {a: vector(site, tensors, seen.largest, a) for a in STRENGTHS}
    errors = {a: error(site, tensors, seen, smooth) for a, smooth in found.items()}
    best = min(errors, key=errors.__getitem__)
    none = error(site, tensors, seen, torch.ones_like(found[best]))
    if errors[best] >= none:
        return 0.0
    site.fold(tensors, found[best])
    return best
