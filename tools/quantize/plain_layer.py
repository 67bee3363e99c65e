"""A decoder layer in plain torch, whose every matrix can be watched or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter, choose
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.norms import LayerNorms, NormModule, RmsNorm, residual, same
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.shape import Layer

ROUTER = "mlp.gate"
OPS = Ops()
Tensors = dict[str, Tensor]  # of a layer, names without "model.layers.N."
# A matrix of a layer ("self_attn.q_proj") times rows [N, I], without the bias.
Product = Callable[[str, Tensor], Tensor]
Watcher = Callable[[Tensor, Tensor], None]


def plain(tensors: Mapping[str, Tensor]) -> Product:
    """The layer's own matrices, in float."""
    return lambda name, x_NI: F.linear(x_NI, tensors[f"{name}.weight"])


def as_plain(layer: Layer) -> bool:
    """Tell whether `PlainLayer` looks at all that a layer is."""
    m, ffn, norms = layer.mixer, layer.ffn, layer.norms
    if not isinstance(m, GroupedAttention) or norms != LayerNorms(RmsNorm(norms.kind.eps)):
        return False
    if layer != Layer(m, ffn, norms):
        return False
    rope = m.rope and replace(m.rope, width=0, layout="halves-first")
    known = GroupedAttention(m.heads, m.kv_heads, m.head_dim, rope)
    mlps = [ffn] if isinstance(ffn, DenseMlp) else []
    if isinstance(ffn, RoutedExperts) and isinstance(ffn.router, GroupRouter):
        mlps = [ffn.expert, *filter(None, [ffn.shared])]
    biased = replace(known, qkv_bias=m.qkv_bias, out_bias=m.out_bias)
    return m == biased and bool(mlps) and all(mlp.activation == "silu" for mlp in mlps)


@dataclass(frozen=True)
class PlainLayer:
    """Layer `n` of a model, from float32 tensors. Rows of texts lie one after the other, [N, H]; `lengths` says
    how many each text has."""

    config: ModelConfig
    n: int
    tensors: Tensors
    lengths: Sequence[int]

    def __call__(self, x_NH: Tensor, product: Product, kept: Watcher = lambda *_: None) -> Tensor:
        """The layer's output [N, H]. kept: is given keys and values, [N, kv_heads * D] each."""
        before = partial(self._norm, "input_layernorm")
        x_NH = residual(x_NH, before, lambda x: self._attention(x, product, kept), same)
        before = partial(self._norm, "post_attention_layernorm")
        if (routed := self.config.layers[self.n].routed) is None:
            return residual(x_NH, before, lambda x: self._mlp("mlp", x, product), same)
        return residual(x_NH, before, lambda x: self._moge(x, routed, product), same)

    def _norm(self, name: str, x_NH: Tensor) -> Tensor:
        return NormModule(OPS, self.config.norm, self.tensors[f"{name}.weight"])(x_NH)

    def _linear(self, name: str, x_NI: Tensor, product: Product) -> Tensor:
        y = product(name, x_NI)
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _mlp(self, name: str, x_NH: Tensor, product: Product) -> Tensor:
        gate = self._linear(f"{name}.gate_proj", x_NH, product)
        up = self._linear(f"{name}.up_proj", x_NH, product)
        return self._linear(f"{name}.down_proj", F.silu(gate) * up, product)

    def _moge(self, x_NH: Tensor, routed: RoutedExperts, product: Product) -> Tensor:
        scores = product(ROUTER, x_NH)
        scale = self.tensors["mlp.router_scale"].flatten()
        assert isinstance(routed.router, GroupRouter)
        choice = choose(scores, scale, routed.router.groups, torch.full((len(x_NH),), -1))
        y = self._mlp("mlp.shared_expert", x_NH, product)
        for e in range(routed.experts):
            rows, group = (choice.numbers == e).nonzero(as_tuple=True)
            if len(rows):
                part = self._mlp(f"mlp.experts.{e}", x_NH[rows], product)
                y.index_add_(0, rows, part * choice.weights[rows, group, None])
        return y

    def _attention(self, x_NH: Tensor, product: Product, kept: Watcher) -> Tensor:
        alike = AlikeLayers.of(self.config)
        c = alike.attention
        q, k, v = (self._linear(f"self_attn.{part}_proj", x_NH, product) for part in "qkv")
        positions = np.concatenate([np.arange(length) for length in self.lengths])
        cos, sin = alike.rope.rotation(positions, np.zeros_like(positions), x_NH.dtype, x_NH.device)
        q = OPS.rotate(q.unflatten(1, (c.heads, -1)), cos, sin)
        k = OPS.rotate(k.unflatten(1, (c.kv_heads, -1)), cos, sin)
        kept(k.flatten(1), v)
        v = v.unflatten(1, (c.kv_heads, -1))
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
