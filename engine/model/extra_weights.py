"""Weights of an architecture with extras, brought into the order in which the decoder runs them.

Heads keep their rotated pairs half a head apart, as in the other architectures, and dims that stand
still have frequency 0; so the loader moves dims of queries and keys, which changes no score. Values
narrower than keys are filled up with zeros, which the output matrix meets with zero columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.model.attention import Attention
from fastslow.engine.model.extras import FIRST, Extras
from fastslow.engine.model.moge import BestOfAll
from fastslow.engine.model.ops import Sinks, wide
from fastslow.engine.model.weights import LayerWeights, Weights


def rotary_order(head_dim: int, extras: Extras) -> list[int]:
    """Which dim of the checkpoint's heads each dim of ours is."""
    turning, half = extras.rotary_dim // 2, head_dim // 2
    if extras.rotary_layout == FIRST:
        pairs = [(2 * i, 2 * i + 1) for i in range(turning)]
        still = list(range(2 * turning, head_dim))
    else:
        first = head_dim - 2 * turning
        pairs = [(first + i, first + turning + i) for i in range(turning)]
        still = list(range(first))
    left, right = still[: half - turning], still[half - turning :]
    return [*(a for a, _ in pairs), *left, *(b for _, b in pairs), *right]


@dataclass(slots=True)
class ExtraWeights(Weights):
    """`Weights` of a config that has extras."""

    @property
    def extras(self) -> Extras:
        assert self.config.extras is not None
        return self.config.extras

    def _layer(self, n: int) -> LayerWeights:
        prefix, mlp = f"model.layers.{n}", f"model.layers.{n}.mlp"
        first, second = (
            self._plain(f"{prefix}.{name}_layernorm.weight") for name in ("input", "post_attention")
        )
        layer = LayerWeights(
            first,
            self._attention(f"{prefix}.self_attn"),
            second,
            self._mlp(mlp, bias=False) if n in self.config.mlp_only_layers else self._best(mlp),
        )
        if self.extras.sandwich:
            layer.mlp_norm = self._plain(f"{prefix}.pre_mlp_layernorm.weight")
            layer.behind_attention = second
            layer.behind_mlp = self._plain(f"{prefix}.post_mlp_layernorm.weight")
        return layer

    def _attention(self, prefix: str) -> Attention:
        c, missing = self.config, self.config.head_dim - self.extras.value_dim
        order = rotary_order(c.head_dim, self.extras)
        turned = (c.heads + c.kv_heads) * c.head_dim
        whole = self.read(f"{prefix}.qkv_proj.weight")
        heads = whole[:turned].view(-1, c.head_dim, whole.shape[1])[:, order].flatten(0, 1)
        values = whole[turned:].view(c.kv_heads, -1, whole.shape[1])
        values = F.pad(values, (0, 0, 0, missing)).flatten(0, 1)
        out = self.read(f"{prefix}.o_proj.weight").view(c.hidden_size, c.heads, -1)
        key_norm = self._plain(f"{prefix}.k_layernorm.weight")[order]
        return Attention(
            c,
            self.ops,
            self._pack([heads, values]),
            None,
            self._pack([F.pad(out, (0, missing)).flatten(1)]),
            None,
            key_norm,
            self._sinks(prefix, order, key_norm) if self.extras.sinks else None,
        )

    def _sinks(self, prefix: str, order: list[int], key_norm: Tensor) -> Sinks:
        c, extras = self.config, self.extras
        keys = self._plain(f"{prefix}.param_sink_key")[..., order]
        keys = self.ops.rms_norm(keys.contiguous(), key_norm, c.rms_norm_eps)
        if not extras.sink_values:
            values = torch.zeros_like(keys)
        else:
            values = self._plain(f"{prefix}.param_sink_value")
            values = F.pad(values, (0, c.head_dim - extras.value_dim))
        return Sinks.of(keys, values, self.ops.block, wide(self.dtype))

    def _best(self, prefix: str) -> BestOfAll:
        extras, sums = self.extras, wide(self.dtype)
        experts = [f"{prefix}.experts.{e}" for e in range(self.config.experts)]
        gate = self._plain(f"{prefix}.gate.weight", dtype=sums)
        bias = torch.zeros(len(gate), dtype=sums, device=self.device)
        if extras.expert_bias:
            bias = self._plain(f"{prefix}.gate.e_score_correction_bias", dtype=sums)
        return BestOfAll(
            self.ops,
            extras.top_k,
            self.ops.pack(gate),
            bias,
            [self._matrix(expert, "gate", "up") for expert in experts],
            [self._matrix(expert, "down") for expert in experts],
            self._mlp(f"{prefix}.shared_experts", bias=False),
            extras.expert_norm,
            extras.expert_scale,
        )
