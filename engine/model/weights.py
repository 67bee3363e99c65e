"""Empty weights of a decoder, and where in them each tensor of a checkpoint belongs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastslow.engine.model.attention import Attention
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.dense import Mlp
from fastslow.engine.model.moge import Moge
from fastslow.engine.ops.base import Ops
from fastslow.engine.ops.precision import wide

Places = dict[str, Tensor]


@dataclass(slots=True)
class Layer:
    """One pre-norm layer: x += attention(norm(x)); x += mlp(norm(x))."""

    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: Mlp | Moge


@dataclass(slots=True)
class Weights:
    """Uninitialised weights of a config, stacked as the model runs them.

    `places` maps each tensor name of the checkpoint to the view that it fills: copy into every one,
    then `pack`.
    """

    config: ModelConfig
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    embedding: Tensor = field(init=False)
    layers: list[Layer] = field(init=False)
    norm: Tensor = field(init=False)
    head: Tensor = field(init=False)
    places: Places = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        c = self.config
        self.embedding = self._own("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
        self.layers = [self._layer(n) for n in range(c.layers)]
        self.norm = self._own("model.norm.weight", c.hidden_size)
        self.head = self.embedding
        if not c.tie_word_embeddings:
            self.head = self._own("lm_head.weight", c.vocab_size, c.hidden_size)

    def pack(self) -> None:
        """Turn the weights into the device's form, one at a time; ends the use of `places`.

        A tied head is packed beside the embedding, which stays as it is.
        """
        self.places.clear()
        for layer in self.layers:
            layer.attention.pack()
            layer.mlp.pack()
        self.head = self.ops.pack(self.head)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _own(self, name: str, *shape: int) -> Tensor:
        self.places[name] = tensor = self._empty(*shape)
        return tensor

    def _stack(self, prefix: str, parts: dict[str, int], *columns: int) -> Tensor:
        """One tensor that holds the parts below each other, each a place of its own."""
        whole = self._empty(sum(parts.values()), *columns)
        kind = "weight" if columns else "bias"
        for name, part in zip(parts, torch.split(whole, list(parts.values())), strict=True):
            self.places[f"{prefix}.{name}_proj.{kind}"] = part
        return whole

    def _layer(self, n: int) -> Layer:
        hidden, prefix = self.config.hidden_size, f"model.layers.{n}"
        return Layer(
            self._own(f"{prefix}.input_layernorm.weight", hidden),
            self._attention(f"{prefix}.self_attn"),
            self._own(f"{prefix}.post_attention_layernorm.weight", hidden),
            self._moge(f"{prefix}.mlp")
            if self.config.routed(n)
            else self._mlp(f"{prefix}.mlp", self.config.intermediate_size, self.config.mlp_bias),
        )

    def _attention(self, prefix: str) -> Attention:
        c = self.config
        queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
        parts, bias = {"q": queries, "k": keys, "v": keys}, c.attention_bias
        return Attention(
            c,
            self.ops,
            self._stack(prefix, parts, c.hidden_size),
            self._stack(prefix, parts) if bias else None,
            self._own(f"{prefix}.o_proj.weight", c.hidden_size, queries),
            self._own(f"{prefix}.o_proj.bias", c.hidden_size) if bias else None,
        )

    def _mlp(self, prefix: str, inner: int, bias: bool) -> Mlp:
        hidden, parts = self.config.hidden_size, {"gate": inner, "up": inner}
        return Mlp(
            self.ops,
            self._stack(prefix, parts, hidden),
            self._stack(prefix, parts) if bias else None,
            self._own(f"{prefix}.down_proj.weight", hidden, inner),
            self._own(f"{prefix}.down_proj.bias", hidden) if bias else None,
        )

    def _moge(self, prefix: str) -> Moge:
        c = self.config
        inner, hidden = c.moe_intermediate_size, c.hidden_size
        router = torch.empty(c.experts, hidden, dtype=wide(self.dtype), device=self.device)
        scale = torch.empty(c.experts, dtype=wide(self.dtype), device=self.device)
        self.places[f"{prefix}.gate.weight"] = router
        self.places[f"{prefix}.router_scale"] = scale.view(1, -1)
        gate_up, down = [], []
        for e in range(c.experts):
            parts = {"gate": inner, "up": inner}
            gate_up.append(self._stack(f"{prefix}.experts.{e}", parts, hidden))
            down.append(self._own(f"{prefix}.experts.{e}.down_proj.weight", hidden, inner))
        shared = self._mlp(f"{prefix}.shared_expert", c.shared_intermediate_size, bias=False)
        return Moge(self.ops, c.groups, router, scale, gate_up, down, shared)
