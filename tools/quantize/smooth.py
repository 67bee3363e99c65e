"""Expert-aware smoothing: large input channels give some of their size to the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import QuantLinear, quantise_tokens
from fastslow.tools.quantize.watched import ROUTER, Tensors

STRENGTHS = (0.25, 0.35, 0.5, 0.65)  # exponents that are tried, besides no smoothing at all
BLOCK = 32
SAMPLES = 64  # rows of each matrix on which they are judged
SHARED_SAMPLES = 256  # of a matrix that reads every row


@dataclass(frozen=True, slots=True)
class Site:
    """consumers: the matrices that read the input, the router among them; their columns take the smoothing vector.
    makers: vectors and matrices whose entries and rows are divided by it. places: int64 [I], which entry of the
    vector a column takes, where heads share a maker's rows; None = its own."""

    consumers: tuple[str, ...]
    makers: tuple[str, ...]
    places: Tensor | None = None

    def columns(self, smooth: Tensor) -> Tensor:
        """Return the entry that each column takes, float32 [I]."""
        return smooth if self.places is None else smooth[self.places]

    def fold(self, tensors: Tensors, smooth: Tensor) -> None:
        """Multiply the columns by a vector, float32 [P], and divide what makes the input."""
        columns = self.columns(smooth)
        for name in self.consumers:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * columns
        for name in self.makers:
            made = tensors[name]
            tensors[name] = made / (smooth if made.ndim == 1 else smooth[:, None])

    def demand(self, columns: Tensor) -> Tensor:
        """The largest of the columns, float32 [I], that take each entry, [P]."""
        if self.places is None:
            return columns
        size = int(self.places.max()) + 1
        return torch.zeros(size).scatter_reduce_(0, self.places, columns, "amax")


def sites_of(config: ModelConfig, n: int, tensors: Tensors) -> Iterator[Site]:
    """Sites of layer `n`, in the order of a forward."""
    attention = "self_attn."
    yield Site(tuple(f"{attention}{x}_proj" for x in "qkv"), ("input_layernorm.weight",))
    a, routed = AlikeLayers.of(config).attention, config.layers[n].routed
    ratio = a.heads // a.kv_heads
    dim = len(tensors[f"{attention}v_proj.weight"]) // a.kv_heads
    head = torch.arange(a.heads)[:, None] // ratio
    places = (head * dim + torch.arange(dim)).flatten()
    yield Site((f"{attention}o_proj",), _made(tensors, f"{attention}v_proj"), places)
    mlps = ["mlp"]
    if routed is not None:
        mlps = ["mlp.shared_expert", *(f"mlp.experts.{e}" for e in range(routed.experts))]
    both = [f"{mlp}.{part}_proj" for mlp in mlps for part in ("gate", "up")]
    router = [ROUTER] if routed is not None else []
    yield Site((*router, *both), ("post_attention_layernorm.weight",))
    for mlp in mlps:
        yield Site((f"{mlp}.down_proj",), _made(tensors, f"{mlp}.up_proj"))


def _made(tensors: Tensors, name: str) -> tuple[str, ...]:
    return tuple(x for x in (f"{name}.weight", f"{name}.bias") if x in tensors)


@dataclass(slots=True)
class ChannelStats:
    """Inputs that the matrices of a layer were given: largest size per channel, some rows. Rows are those of the float
    model, spread over the texts."""

    largest: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, x_NI: Tensor) -> None:
        self.largest[name] = x_NI.abs().amax(0)
        most = SAMPLES if ".experts." in name else SHARED_SAMPLES
        step = max(1, len(x_NI) // most)
        self.rows[name] = x_NI[::step][:most].clone()


def vector(site: Site, tensors: Tensors, largest: Mapping[str, Tensor], strength: float) -> Tensor:
    """The smoothing vector of a site, float32 [P], powers of two around 1. largest: max|x| per channel of each
    consumer that saw rows; one that saw none asks for nothing."""
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


def error(site: Site, tensors: Tensors, seen: ChannelStats, smooth: Tensor) -> float:
    """Mean over rows of the squared error of the site's products, relative to their size. Inputs are taken in
    int8 both per token and in blocks of 32, since devices differ in that. The router stays in float."""
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


def smooth_site(site: Site, tensors: Tensors, seen: ChannelStats) -> Tensor | None:
    """Fold the best vector for a site; returns what each column took, None where no smoothing is as good."""
    if not any(name in seen.rows for name in site.consumers):
        return None
    found = [vector(site, tensors, seen.largest, strength) for strength in STRENGTHS]
    errors = [error(site, tensors, seen, smooth) for smooth in found]
    best = found[errors.index(min(errors))]
    if min(errors) >= error(site, tensors, seen, torch.ones_like(best)):
        return None
    site.fold(tensors, best)
    return site.columns(best)


def in_tokens(x_TI: Tensor) -> Tensor:
    """Round rows to int8 with a scale per row, and give them as floats."""
    rows, steps = quantise_tokens(x_TI)
    return rows.float() * steps[:, None]


def in_blocks(x_TI: Tensor) -> Tensor:
    """Round rows to int8 with a scale per 32 inputs, as the CPU kernels take them, and give them as floats."""
    parts = F.pad(x_TI, (0, -x_TI.shape[1] % BLOCK)).view(-1, BLOCK)
    return in_tokens(parts).view(len(x_TI), -1)[:, : x_TI.shape[1]]
