"""The weights of a decoder, stacked as it runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from fastslow.engine.model.attention import Attention
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.int8 import QuantLinear, ReadQuant, no_int8
from fastslow.engine.model.moge import BestOfAll, Mlp, Moge
from fastslow.engine.model.ops import Experts, Ops, wide

Read = Callable[[str], Tensor]


@dataclass(slots=True)
class LayerWeights:
    """One pre-norm layer: x += attention(norm(x)); x += mlp(norm(x)). Norms `behind` a sublayer are
    applied to what it adds."""

    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: Mlp | Moge
    attention_post_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None


@dataclass(slots=True)
class Weights:
    """Weights of a config in `dtype` on `device`, read by the names of `tensors.tensor_shapes`.

    linear: gives matrices that are to run in int8, None for the others.

    Matrices are stacked and packed one by one as they are read, so that beside the finished ones
    no more than one lies in memory. A tied head is packed beside the embedding, which stays.
    """

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
        self.norm = self._plain("model.norm.weight")
        tied = self.config.tie_word_embeddings
        self.head = self._tied_head() if tied else self._packed("lm_head.weight")
        self._buffer = self._buffer.new_empty(0)

    def _plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors below each other."""
        parts = [self.read(name) for name in names]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        whole = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return _fill(whole, parts)

    def _packed(self, *names: str) -> Tensor:
        """The named matrices below each other."""
        matrices = [m for name in names if (m := self.linear(name)) is not None]
        if len(matrices) == len(names):
            return self.ops.pack_int8(QuantLinear.stack(matrices)).to(self.device)
        return self._pack([self.read(name) for name in names])

    def _pack(self, parts: list[Tensor]) -> Tensor:
        """Matrices below each other, packed out of one reused buffer.

        A buffer of its own for each would leave holes between the packed ones that none fits.
        """
        shape = (sum(len(part) for part in parts), parts[0].shape[1])
        if self._buffer.numel() < prod(shape):
            self._buffer = self._buffer.new_empty(prod(shape))
        whole = _fill(self._buffer[: prod(shape)].view(shape), parts)
        packed = self.ops.pack(whole)
        return whole.clone() if packed is whole else packed

    def _tied_head(self) -> Tensor:
        name = "model.embed_tokens.weight"
        return self.ops.pack(self.embedding) if self.linear(name) is None else self._packed(name)

    def _matrix(self, prefix: str, *parts: str) -> Tensor:
        return self._packed(*(f"{prefix}.{part}_proj.weight" for part in parts))

    def _bias(self, prefix: str, *parts: str) -> Tensor:
        return self._plain(*(f"{prefix}.{part}_proj.bias" for part in parts))

    def _layer(self, n: int) -> LayerWeights:
        prefix = f"model.layers.{n}"
        return LayerWeights(
            self._plain(f"{prefix}.input_layernorm.weight"),
            self._attention(f"{prefix}.self_attn", n),
            self._plain(f"{prefix}.post_attention_layernorm.weight"),
            self._moge(f"{prefix}.mlp")
            if self.config.routed(n)
            else self._mlp(f"{prefix}.mlp", self.config.mlp_bias),
        )

    def _attention(self, prefix: str, n: int) -> Attention:
        c = self.config
        query_norm, key_norm = (
            self._plain(f"{prefix}.{side}_norm.weight") if normed else None
            for side, normed in (("q", c.query_norm), ("k", c.key_norm))
        )
        sums = wide(self.dtype)
        return Attention(
            c,
            self.ops,
            self._matrix(prefix, "q", "k", "v"),
            self._bias(prefix, "q", "k", "v") if c.qkv_bias else None,
            self._matrix(prefix, "o"),
            self._bias(prefix, "o") if c.out_bias else None,
            query_norm,
            key_norm,
            sink_logits=self._plain(f"{prefix}.sinks", dtype=sums) if c.sink_logits else None,
            window=c.window(n),
            rotates=n not in c.unrotated,
        )

    def _mlp(self, prefix: str, bias: bool) -> Mlp:
        return Mlp(
            self.ops,
            self._matrix(prefix, "gate", "up"),
            self._bias(prefix, "gate", "up") if bias else None,
            self._matrix(prefix, "down"),
            self._bias(prefix, "down") if bias else None,
        )

    def _moge(self, prefix: str, shared: str = "shared_expert") -> Moge:
        c, sums = self.config, wide(self.dtype)
        gate = self.ops.pack(self._plain(f"{prefix}.gate.weight", dtype=sums))
        experts = self._experts([f"{prefix}.experts.{e}" for e in range(c.experts)])
        common = self._mlp(f"{prefix}.{shared}", bias=False) if c.shared_intermediate_size else None
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
            return Experts(gate_up, down, swiglu=self.config.swiglu)
        gate_up_bias, down_bias = (
            torch.stack([self._bias(prefix, *parts) for prefix in prefixes])
            for parts in (("gate", "up"), ("down",))
        )
        return Experts(gate_up, down, gate_up_bias, down_bias, self.config.swiglu)


def _fill(whole: Tensor, parts: list[Tensor]) -> Tensor:
    for place, part in zip(torch.split(whole, [len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return whole
