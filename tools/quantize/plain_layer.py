"""A decoder layer in plain torch, whose every matrix can be watched or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch.reference import ReferenceOps
from fastslow.engine.model.attention import rotation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.moge import choose

ROUTER = "mlp.gate"
OPS = ReferenceOps()
Tensors = dict[str, Tensor]  # of a layer, names without "model.layers.N."
# A matrix of a layer ("self_attn.q_proj") times rows [N, I], without the bias.
Product = Callable[[str, Tensor], Tensor]
Watcher = Callable[[Tensor, Tensor], None]


def plain(tensors: Mapping[str, Tensor]) -> Product:
    """The layer's own matrices, in float."""
    return lambda name, x_NI: F.linear(x_NI, tensors[f"{name}.weight"])


@dataclass(frozen=True)
class PlainLayer:
    """Layer `n` of a model, from float32 tensors. Rows of texts lie one after the other, [N, H]; `lengths` says
    how many each text has."""

    config: ModelConfig
    n: int
    tensors: Tensors
    lengths: Sequence[int]

    def __call__(
        self,
        x_NH: Tensor,
        product: Product,
        chosen: Watcher = lambda *_: None,
        kept: Watcher = lambda *_: None,
    ) -> Tensor:
        """The layer's output [N, H]. chosen: is given the router's scores [N, E] and the experts it chose,
        int64 [N, G]. kept: is given keys and values, [N, kv_heads * D] each."""
        eps = self.config.rms_norm_eps
        fresh = OPS.rms_norm(x_NH, self.tensors["input_layernorm.weight"], eps)
        x_NH = x_NH + self._attention(fresh, product, kept)
        fresh = OPS.rms_norm(x_NH, self.tensors["post_attention_layernorm.weight"], eps)
        if self.config.routed(self.n):
            return x_NH + self._moge(fresh, product, chosen)
        return x_NH + self._mlp("mlp", fresh, product)

    def _linear(self, name: str, x_NI: Tensor, product: Product) -> Tensor:
        y = product(name, x_NI)
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _mlp(self, name: str, x_NH: Tensor, product: Product) -> Tensor:
        gate = self._linear(f"{name}.gate_proj", x_NH, product)
        up = self._linear(f"{name}.up_proj", x_NH, product)
        return self._linear(f"{name}.down_proj", F.silu(gate) * up, product)

    def _moge(self, x_NH: Tensor, product: Product, chosen: Watcher) -> Tensor:
        scores = product(ROUTER, x_NH)
        scale = self.tensors["mlp.router_scale"].flatten()
        groups = self.config.groups
        choice = choose(scores, scale, groups, torch.full((len(x_NH),), -1))
        chosen(scores, choice.numbers.long())
        y = self._mlp("mlp.shared_expert", x_NH, product)
        for e in range(self.config.experts):
            rows, group = (choice.numbers == e).nonzero(as_tuple=True)
            if len(rows):
                part = self._mlp(f"mlp.experts.{e}", x_NH[rows], product)
                y.index_add_(0, rows, part * choice.weights[rows, group, None])
        return y

    def _attention(self, x_NH: Tensor, product: Product, kept: Watcher) -> Tensor:
        c = self.config
        q, k, v = (self._linear(f"self_attn.{part}_proj", x_NH, product) for part in "qkv")
        positions = np.concatenate([np.arange(length) for length in self.lengths])
        cos, sin = rotation(c, positions, np.zeros_like(positions), x_NH.dtype, x_NH.device)
        q = OPS.rotate(q.view(-1, c.heads, c.head_dim), cos, sin)
        k = OPS.rotate(k.view(-1, c.kv_heads, c.head_dim), cos, sin)
        kept(k.flatten(1), v)
        v = v.view(-1, c.kv_heads, c.head_dim)
        parts, end = [], 0
        for length in self.lengths:
            first, end = end, end + length
            q_own, k_own, v_own = (x[first:end].transpose(0, 1)[None] for x in (q, k, v))
            seen = F.scaled_dot_product_attention(
                q_own, k_own, v_own, is_causal=True, enable_gqa=True
            )
            parts.append(seen[0].transpose(0, 1))
        return self._linear("self_attn.o_proj", torch.cat(parts).flatten(1), product)


def watched(product: Product, watch: Callable[[str, Tensor], None]) -> Product:
    """The same product, after `watch` has seen its name and rows."""

    def seen(name: str, x_NI: Tensor) -> Tensor:
        watch(name, x_NI)
        return product(name, x_NI)

    return seen
