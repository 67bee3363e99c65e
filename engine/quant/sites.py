"""Where a layer's inputs can be smoothed: matrices that share an input, and what makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.quant.layer import ROUTER, Tensors


@dataclass(frozen=True, slots=True)
class Site:
    """consumers: the matrices that read the input, the router among them; their columns take the
    smoothing vector. makers: vectors and matrices whose entries and rows are divided by it.

    places: int64 [I], which entry of the vector a column takes, where heads share a maker's rows;
    None = its own.
    """

    consumers: tuple[str, ...]
    makers: tuple[str, ...]
    places: Tensor | None = None

    def columns(self, smooth: Tensor) -> Tensor:
        """What each column takes, float32 [I]."""
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
    """Those of layer `n`, in the order in which a text passes them."""
    attention = "self_attn."
    yield Site(tuple(f"{attention}{x}_proj" for x in "qkv"), ("input_layernorm.weight",))
    ratio, dim = config.heads // config.kv_heads, config.head_dim
    head = torch.arange(config.heads)[:, None] // ratio
    places = (head * dim + torch.arange(dim)).flatten()
    yield Site((f"{attention}o_proj",), _made(tensors, f"{attention}v_proj"), places)
    mlps = ["mlp"]
    if config.routed(n):
        mlps = ["mlp.shared_expert", *(f"mlp.experts.{e}" for e in range(config.experts))]
    both = [f"{mlp}.{part}_proj" for mlp in mlps for part in ("gate", "up")]
    router = [ROUTER] if config.routed(n) else []
    yield Site((*router, *both), ("post_attention_layernorm.weight",))
    for mlp in mlps:
        yield Site((f"{mlp}.down_proj",), _made(tensors, f"{mlp}.up_proj"))


def _made(tensors: Tensors, name: str) -> tuple[str, ...]:
    return tuple(x for x in (f"{name}.weight", f"{name}.bias") if x in tensors)
