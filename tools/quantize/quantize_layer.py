"""Quantising of one layer to W8A8: smoothed, its matrices rounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import LARGEST, QuantLinear
from fastslow.tools.quantize.smooth import ChannelStats, sites_of, smooth_site
from fastslow.tools.quantize.watched import ROUTER, Tensors, WatchedLayer


@dataclass(slots=True)
class Quantised:
    """A layer in W8A8: matrices in int8 and the other tensors in float32, without "model.layers.N.".
    kv: float32 [2, kv_heads * D], largest sizes of keys and values per channel. drift: of the layer's output from the
    float model's, relative."""

    matrices: dict[str, QuantLinear]
    tensors: Tensors
    kv: Tensor
    drift: float


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
    seen, layer = ChannelStats(), WatchedLayer(config, n, lengths)
    float_NH, _ = layer(float_NH, tensors, seen)
    for place, site in enumerate(sites, 1):  # all are folded before one is rounded
        smooth_site(site, tensors, seen)
        done(place / len(sites))
    names = [name for site in sites for name in site.consumers if name != ROUTER]
    matrices = {name: QuantLinear.of(tensors[f"{name}.weight"]) for name in names}
    int8_NH, kv_2NC = layer(int8_NH, tensors, matrices=matrices)
    others = {
        name: t for name, t in tensors.items() if name.removesuffix(".weight") not in matrices
    }
    drift = float((int8_NH - float_NH).norm() / float_NH.norm().clamp_min(1e-30))
    return Quantised(matrices, others, kv_2NC.abs().amax(1), drift), float_NH, int8_NH


def kv_scales(kv_2C: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [C] each: a step of the int8 that keys and values per channel would be kept in."""
    keys, values = (kv_2C / LARGEST).clamp_min(1e-12)
    return keys, values
