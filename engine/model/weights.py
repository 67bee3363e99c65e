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
from fastslow.engine.model.moge import Mlp, Moge
from fastslow.engine.model.ops import Ops, wide

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
            self._attention(f"{prefix}.self_attn"),
            self._plain(f"{prefix}.post_attention_layernorm.weight"),
            self._moge(f"{prefix}.mlp")
            if self.config.routed(n)
            else self._mlp(f"{prefix}.mlp", self.config.mlp_bias),
        )

    def _attention(self, prefix: str) -> Attention:
        c = self.config
        return Attention(
            c,
            self.ops,
            self._matrix(prefix, "q", "k", "v"),
            self._bias(prefix, "q", "k", "v") if c.qkv_bias else None,
            self._matrix(prefix, "o"),
            self._bias(prefix, "o") if c.out_bias else None,
        )

    def _mlp(self, prefix: str, bias: bool) -> Mlp:
        return Mlp(
            self.ops,
            self._matrix(prefix, "gate", "up"),
            self._bias(prefix, "gate", "up") if bias else None,
            self._matrix(prefix, "down"),
            self._bias(prefix, "down") if bias else None,
        )

    def _moge(self, prefix: str) -> Moge:
        experts = [f"{prefix}.experts.{e}" for e in range(self.config.experts)]
        sums = wide(self.dtype)
        return Moge(
            self.ops,
            self.config.groups,
            self.ops.pack(self._plain(f"{prefix}.gate.weight", dtype=sums)),
            self._plain(f"{prefix}.router_scale", dtype=sums).flatten(),
            [self._matrix(expert, "gate", "up") for expert in experts],
            [self._matrix(expert, "down") for expert in experts],
            self._mlp(f"{prefix}.shared_expert", bias=False),
        )


def _fill(whole: Tensor, parts: list[Tensor]) -> Tensor:
    for place, part in zip(torch.split(whole, [len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return whole
