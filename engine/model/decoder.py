"""The decoder, and its weights as it runs them: token ids and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.attention import Attention, Step
from fastslow.engine.model.base import LayeredModel, best_tokens, check_step
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.moge import BestOfAll, Mlp, Moge
from fastslow.engine.model.ops import (
    Experts,
    Ops,
    QuantLinear,
    ReadQuant,
    Sinks,
    no_int8,
    soft_cap,
    wide,
)
from fastslow.engine.model.shape import DecoderShape
from fastslow.engine.model.tensors import layer_norms
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints, ModelOutput

Read = Callable[[str], Tensor]
Sublayer = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class LayerWeights:
    """Weights of a pre-norm layer: x += attention(norm(x)); x += mlp(norm(x)). Post norms are of what is added."""

    attention: Attention
    mlp: Mlp | Moge
    attention_norm: Tensor
    mlp_norm: Tensor
    attention_post_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None


@dataclass(slots=True)
class Weights:
    """Weights of a config in `dtype` on `device`, read by the names of `tensors.tensor_shapes`.

    linear: gives matrices that are to run in int8, None for the others. Matrices are stacked and packed one
    by one as they are read, so that beside the finished ones no more than one lies in memory."""

    config: ModelConfig
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    read: Read
    linear: ReadQuant = no_int8
    embedding: Tensor = field(init=False)
    layers: list[LayerWeights] = field(init=False)
    norm: Tensor = field(init=False)
    head: Tensor = field(init=False)
    _buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = torch.empty(0, dtype=self.dtype, device=self.device)
        self.embedding = self._plain("model.embed_tokens.weight")
        self.layers = [self._layer(n) for n in range(self.config.layers)]
        self.norm = self._norm("model.norm")
        tied = self.config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        plain = tied and self.linear(name) is None
        self.head = self.ops.pack(self.embedding) if plain else self._packed(name)
        self._buffer = self._buffer.new_empty(0)

    def embed(self, tokens: Tensor) -> Tensor:
        """[T, H] as the first layer takes it."""
        rows, scale = self.embedding.index_select(0, tokens), self.config.embedding_scale
        return rows if scale == 1 else rows * scale

    def normed(self, x_TH: Tensor, norm_H: Tensor | None) -> Tensor:
        """Rows after a norm; as they are where there is none."""
        return x_TH if norm_H is None else self.ops.rms_norm(x_TH, norm_H, self.config.rms_norm_eps)

    def through(self, layer: LayerWeights, x_TH: Tensor, attend: Sublayer, mlp: Sublayer) -> Tensor:
        """Rows after a layer. attend, mlp: what the sublayers make of normed rows."""
        fresh = self.normed(x_TH, layer.attention_norm)
        x_TH = x_TH + self.normed(attend(fresh), layer.attention_post_norm)
        return x_TH + self.normed(mlp(self.normed(x_TH, layer.mlp_norm)), layer.mlp_post_norm)

    def _norm(self, name: str) -> Tensor:
        """With an offset in float32, since 1 + x has few bits left for x."""
        if not (offset := self.config.norm_offset):
            return self._plain(f"{name}.weight")
        return self._plain(f"{name}.weight", dtype=wide(self.dtype)).add_(offset)

    def _plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        parts = [self.read(name) for name in names]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        whole = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return _fill(whole, parts)

    def _packed(self, *names: str) -> Tensor:
        matrices = [m for name in names if (m := self.linear(name)) is not None]
        if len(matrices) == len(names):
            return self.ops.pack_int8(QuantLinear.stack(matrices)).to(self.device)
        return self._pack([self.read(name) for name in names])

    def _pack(self, parts: list[Tensor]) -> Tensor:
        """Out of one reused buffer: a buffer for each would leave holes between the packed ones."""
        shape = (sum(len(part) for part in parts), parts[0].shape[1])
        if self._buffer.numel() < prod(shape):
            self._buffer = self._buffer.new_empty(prod(shape))
        whole = _fill(self._buffer[: prod(shape)].view(shape), parts)
        packed = self.ops.pack(whole)
        return whole.clone() if packed is whole else packed

    def _matrix(self, prefix: str, *parts: str) -> Tensor:
        return self._packed(*(f"{prefix}.{part}_proj.weight" for part in parts))

    def _bias(self, prefix: str, *parts: str) -> Tensor:
        return self._plain(*(f"{prefix}.{part}_proj.bias" for part in parts))

    def _layer(self, n: int) -> LayerWeights:
        prefix, c = f"model.layers.{n}", self.config
        norms = {use: self._norm(f"{prefix}.{name}") for use, name in layer_norms(c).items()}
        mlp = self._moge(f"{prefix}.mlp") if c.routed(n) else self._mlp(f"{prefix}.mlp", c.mlp_bias)
        return LayerWeights(self._attention(f"{prefix}.self_attn", n), mlp, **norms)

    def _attention(self, prefix: str, n: int) -> Attention:
        c, sums = self.config, wide(self.dtype)
        query_norm, key_norm = (
            self._norm(f"{prefix}.{side}_norm")[c.rotary_order] if normed else None
            for side, normed in (("q", c.query_norm), ("k", c.key_norm))
        )
        bias = self._bias(prefix, *c.qkv_names) if c.qkv_bias else None
        return Attention(
            c,
            self.ops,
            self._qkv(prefix),
            None if bias is None else run_heads(c, bias),
            self._out(prefix),
            self._bias(prefix, "o") if c.out_bias else None,
            query_norm,
            key_norm,
            sinks=self._sinks(prefix, key_norm) if c.sinks else None,
            sink_logits=self._plain(f"{prefix}.sinks", dtype=sums) if c.sink_logits else None,
            window=c.window(n),
            rotates=n not in c.unrotated,
        )

    def _qkv(self, prefix: str) -> Tensor:
        if self.config.heads_as_stored:
            return self._matrix(prefix, *self.config.qkv_names)
        parts = [self.read(f"{prefix}.{name}_proj.weight") for name in self.config.qkv_names]
        return self._pack([run_heads(self.config, torch.cat(parts))])

    def _out(self, prefix: str) -> Tensor:
        if self.config.value_width == self.config.head_dim:
            return self._matrix(prefix, "o")
        return self._pack([run_out(self.config, self.read(f"{prefix}.o_proj.weight"))])

    def _sinks(self, prefix: str, key_norm: Tensor | None) -> Sinks:
        c = self.config
        keys = self._plain(f"{prefix}.param_sink_key")[..., c.rotary_order].contiguous()
        if key_norm is not None:
            keys = self.ops.rms_norm(keys, key_norm, c.rms_norm_eps)
        values = torch.zeros_like(keys)
        if c.sink_values:
            learned = self._plain(f"{prefix}.param_sink_value")
            values = F.pad(learned, (0, c.head_dim - c.value_width))
        return Sinks.of(keys, values, self.ops.block, wide(self.dtype))

    def _mlp(self, prefix: str, bias: bool) -> Mlp:
        return Mlp(
            self.ops,
            self._matrix(prefix, "gate", "up"),
            self._bias(prefix, "gate", "up") if bias else None,
            self._matrix(prefix, "down"),
            self._bias(prefix, "down") if bias else None,
            self.config.activation,
        )

    def _moge(self, prefix: str) -> Moge:
        c, sums = self.config, wide(self.dtype)
        gate = self.ops.pack(self._plain(f"{prefix}.gate.weight", dtype=sums))
        experts = self._experts([f"{prefix}.experts.{e}" for e in range(c.experts)])
        inner = c.shared_intermediate_size
        common = self._mlp(f"{prefix}.shared_expert", bias=False) if inner else None
        if c.router is None:
            scale = self._plain(f"{prefix}.router_scale", dtype=sums).flatten()
            return Moge(self.ops, c.groups, gate, experts, common, scale)
        choice_bias, bias = None, None
        if c.router.choice_bias:
            choice_bias = self._plain(f"{prefix}.gate.e_score_correction_bias", dtype=sums)
        if c.router.bias:
            bias = self._plain(f"{prefix}.gate.bias", dtype=sums)
        return BestOfAll(
            self.ops, c.router.top_k, gate, experts, common, choice_bias, c.router, gate_bias=bias
        )

    def _experts(self, prefixes: list[str]) -> Experts:
        gate_up = [self._matrix(prefix, "gate", "up") for prefix in prefixes]
        down = [self._matrix(prefix, "down") for prefix in prefixes]
        if not self.config.expert_bias:
            return Experts(gate_up, down, activation=self.config.activation)
        gate_up_bias, down_bias = (
            torch.stack([self._bias(prefix, *parts) for prefix in prefixes])
            for parts in (("gate", "up"), ("down",))
        )
        return Experts(gate_up, down, gate_up_bias, down_bias, self.config.activation)


def run_heads(c: DecoderShape, rows: Tensor) -> Tensor:
    """Rows of queries, keys and values as layers run them: dims in the order in which they are rotated, values
    filled up with zeros to the width of keys."""
    if c.heads_as_stored:
        return rows
    turned = (c.heads + c.kv_heads) * c.head_dim
    heads = rows[:turned].unflatten(0, (-1, c.head_dim))[:, c.rotary_order]
    values = rows[turned:].unflatten(0, (c.kv_heads, -1))
    missing = values.new_zeros(c.kv_heads, c.head_dim - c.value_width, *rows.shape[1:])
    return torch.cat((heads.flatten(0, 1), torch.cat((values, missing), 1).flatten(0, 1)))


def run_out(c: DecoderShape, weight_HI: Tensor) -> Tensor:
    """The output matrix with zero columns where `run_heads` filled values up."""
    whole = weight_HI.unflatten(1, (c.heads, c.value_width))
    return F.pad(whole, (0, c.head_dim - c.value_width)).flatten(1)


def _fill(whole: Tensor, parts: list[Tensor]) -> Tensor:
    for place, part in zip(torch.split(whole, [len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return whole


class Decoder(LayeredModel[Weights]):
    """A pre-norm transformer of any known family: what differs is fields of its shape.

    A row's result has the same bits whatever rows run beside it, however its text was cut into chunks."""

    storage = KVStorage

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        check_step(rows, kv, self.storage, features, self.layers)
        x_PH, step, groups = self._start(rows)
        w = self.weights
        wanted, looked = (
            torch.from_numpy(x).to(self.device) for x in (rows.outputs, rows.feature_rows)
        )
        taken: dict[int, Tensor] = {}
        for n in self.layers:
            layer = w.layers[n]
            attend = partial(layer.attention, k_SKD=kv.k[n], v_SKD=kv.v[n], step=step)
            x_PH = w.through(layer, x_PH, attend, partial(layer.mlp, wanted=groups))
            if n in features:
                taken[n] = x_PH.index_select(0, looked)
        last_MH = w.normed(x_PH.index_select(0, wanted), w.norm)
        logits_MV = self._logits(last_MH)
        return ModelOutput(
            soft_cap(logits_MV, self.config.logit_cap),
            torch.cat([taken[n] for n in features], -1) if features else None,
            best_tokens(logits_MV, rows.only_best | bool(self.config.logit_cap)),
        )

    def _logits(self, last_MH: Tensor) -> Tensor:
        dtype = wide(self.dtype)
        if not len(last_MH):
            return torch.empty(0, self.config.vocab_size, dtype=dtype, device=self.device)
        return self.weights.ops.linear(last_MH, self.weights.head).to(dtype)

    def _start(self, rows: Rows) -> tuple[Tensor, Step, Ints]:
        """Embeddings, what the layers share, and groups per row (none for padding), padded to `ops.rows`."""
        count, ops = len(rows.tokens), self.weights.ops
        padded = count + -count % ops.rows
        tokens = torch.from_numpy(_pad(rows.tokens, padded)).to(self.device)
        # padding rows run no routed expert
        return (
            self.weights.embed(tokens),
            Step.of(rows, padded, self.config, ops, self.dtype, self.device),
            _pad(rows.groups, padded),
        )


def _pad(values: Ints, size: int) -> Ints:
    return np.pad(values, (0, size - len(values)))
