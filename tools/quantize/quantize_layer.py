"""Quantising of one layer to W8A8: smoothed, its gate aligned, its matrices rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import LARGEST, TINY, QuantLinear
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.tools.quantize.plain_layer import ROUTER, PlainLayer, Tensors, plain, watched
from fastslow.tools.quantize.smooth import ChannelStats, Site, in_tokens, sites_of, smooth_site

RIDGES = (0.003, 0.03, 0.3)  # of the mean square of a channel: to align a gate
DAMPING = 0.01  # likewise: to round a matrix
BLOCK = 32  # columns whose corrections are gathered before the rest is touched


def align(gate_EH: Tensor, x_NH: Tensor, scores_NE: Tensor, groups: int) -> Tensor:
    """The gate that agrees best with the float model's scores on every other row; it is fitted to the rest.
    x: the rows that the quantised model brings. The old gate stays unless another one, in numbers that
    bfloat16 holds, agrees more."""
    fit, held = slice(0, None, 2), slice(1, None, 2)
    goal, rest = scores_NE[held], x_NH[held]
    best, most = gate_EH, agreement(F.linear(rest, gate_EH), goal, groups)
    x = x_NH[fit].double()
    gram = x.T @ x / len(x)
    missing = scores_NE[fit].double() - x @ gate_EH.double().T
    pull = x.T @ missing / len(x)
    size = gram.diagonal().mean()
    for strength in RIDGES:
        within = gram + torch.eye(len(gram), dtype=gram.dtype) * (strength * size).clamp_min(1e-12)
        fitted = (gate_EH + torch.linalg.solve(within, pull).T.float()).bfloat16().float()
        found = agreement(F.linear(rest, fitted), goal, groups)
        if found > most:
            best, most = fitted, found
    return best


def agreement(scores_NE: Tensor, goal_NE: Tensor, groups: int) -> float:
    """Share of (row, group) pairs whose likeliest expert is the same."""
    if not len(goal_NE):
        return 1.0
    mine, theirs = (s.view(len(s), groups, -1).argmax(-1) for s in (scores_NE, goal_NE))
    return float((mine == theirs).float().mean())


def round_matrix(weight_OI: Tensor, gram_II: Tensor | None) -> QuantLinear:
    """int8 with a scale per row, which is that of `QuantLinear.of`. gram: float32 [I, I], mean of the products of
    the inputs' channels; None where no inputs are known: numbers are rounded to their nearest."""
    plain = QuantLinear.of(weight_OI)
    if gram_II is None or not (factor := _factor(gram_II)).numel():
        return plain
    left, scale = weight_OI.float().clone(), plain.scale_O
    inverse = torch.where(scale > TINY, 1 / scale, 0.0)
    rounded = torch.empty_like(plain.weight_OI)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        block, missed = left[:, first:last].T.contiguous(), []
        for i in range(last - first):
            place = first + i
            number = (block[i] * inverse).round_().clamp_(-LARGEST, LARGEST)
            rounded[:, place] = number.to(torch.int8)
            wrong = (block[i] - number * scale) / factor[place, place]
            block[i + 1 :] -= factor[place, place + 1 : last, None] * wrong
            missed.append(wrong)
        left[:, last:] -= torch.stack(missed).T @ factor[first:last, last:]
    return QuantLinear(rounded, scale)


def _factor(gram_II: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; empty where the inputs say nothing."""
    diagonal = gram_II.diagonal()
    size = diagonal.mean()
    if not bool(size > 0) or not bool(size.isfinite()):
        return gram_II.new_empty(0)
    damped = gram_II.double() + torch.eye(len(gram_II), dtype=torch.float64) * size * DAMPING
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


@dataclass(slots=True)
class Quantised:
    """A layer in W8A8: matrices in int8 and the other tensors in float32, without "model.layers.N.".
    kv: float32 [2, kv_heads * D], largest sizes of keys and values per channel. drift: of the layer's output from the
    float model's, relative."""

    matrices: dict[str, QuantLinear]
    tensors: Tensors
    kv: Tensor
    drift: float


@dataclass(slots=True)
class Int8Product:
    """The layer's products in W8A8 as floats: inputs per token, weights per output. The gate stays in float and is
    aligned when its rows arrive: `goal` are the float model's scores."""

    matrices: dict[str, QuantLinear]
    tensors: Tensors
    groups: int
    goal: Tensor | None

    def __call__(self, name: str, x_NI: Tensor) -> Tensor:
        if name != ROUTER:
            return F.linear(in_tokens(x_NI), self.matrices[name].dequantised())
        gate = self.tensors[f"{ROUTER}.weight"]
        if self.goal is not None:
            gate = align(gate, x_NI, self.goal, self.groups)
            self.tensors[f"{ROUTER}.weight"] = gate
        return F.linear(x_NI, gate)


def quantize_layer(
    config: ModelConfig,
    n: int,
    tensors: Tensors,
    lengths: Sequence[int],
    float_NH: Tensor,
    int8_NH: Tensor,
    done: Callable[[float], None] = lambda share: None,
) -> tuple[Quantised, Tensor, Tensor]:
    """Layer `n` in W8A8, and its outputs in the float model and in the quantised one, [N, H]. tensors: float32,
    changed in place. float, int8: the rows that the layers before it made."""
    sites = list(sites_of(config, n, tensors))
    wanted = frozenset(s.consumers[0] for s in sites if ".experts." not in s.consumers[0])
    seen, scores, kv = ChannelStats(wanted), list[Tensor](), list[Tensor]()
    layer = PlainLayer(config, n, tensors, lengths)
    watching = watched(plain(tensors), seen)
    float_NH = layer(float_NH, watching, lambda scores_NE, _: scores.append(scores_NE))
    matrices: dict[str, QuantLinear] = {}
    smoothed = [smooth_site(site, tensors, seen) for site in sites]
    for place, site in enumerate(sites, 1):  # all are folded before one is rounded
        gram_II, columns = seen.grams.get(site.consumers[0]), smoothed[place - 1]
        matrices |= _rounded(site, tensors, gram_II, columns)
        done(place / len(sites))
    groups = RoutedUnits.of(config).most
    product = Int8Product(matrices, tensors, groups, scores[0] if scores else None)
    int8_NH = layer(int8_NH, product, kept=lambda k, v: kv.extend((k, v)))
    others = {
        name: t for name, t in tensors.items() if name.removesuffix(".weight") not in matrices
    }
    largest = torch.stack([x.abs().amax(0) for x in kv])
    drift = float((int8_NH - float_NH).norm() / float_NH.norm().clamp_min(1e-30))
    return Quantised(matrices, others, largest, drift), float_NH, int8_NH


def _rounded(
    site: Site, tensors: Tensors, gram_II: Tensor | None, columns: Tensor | None
) -> dict[str, QuantLinear]:
    """The site's matrices in int8, all that share its input rounded in one go."""
    names = [name for name in site.consumers if name != ROUTER]
    weights = [tensors[f"{name}.weight"] for name in names]
    if gram_II is not None and columns is not None:
        gram_II = gram_II / columns / columns[:, None]
    whole = round_matrix(torch.cat(weights), gram_II)
    sizes = [len(weight) for weight in weights]
    parts = zip(torch.split(whole.weight_OI, sizes), torch.split(whole.scale_O, sizes))
    return {name: QuantLinear(*part) for name, part in zip(names, parts)}


def kv_scales(kv_2C: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [C] each: a step of the int8 that keys and values per channel would be kept in."""
    keys, values = (kv_2C / LARGEST).clamp_min(1e-12)
    return keys, values
