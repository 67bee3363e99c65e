"""The weights of openPangu Pro MoE V2 for accelerators: see `engine.model.families.pangu_v2`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.ops import DeviceMatrix, Front
from fastslow.engine.backends.accelerator.weights import Stacked, StackedLayer
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families.pangu_v2 import rotary_order
from fastslow.engine.model.shape import PanguV2Config


class StackedPanguV2(Stacked):
    """Dims of queries and keys in the order in which they are rotated, and values as wide as keys."""

    @property
    def family(self) -> PanguV2Config:
        assert self.config.pangu_v2 is not None
        return self.config.pangu_v2

    def _layer(self, n: int) -> StackedLayer:
        prefix, mlp = f"model.layers.{n}", f"model.layers.{n}.mlp"
        attention, order = f"{prefix}.self_attn", rotary_order(self.config.head_dim, self.family)
        key_norm = self._plain(f"{attention}.k_layernorm.weight")[order].contiguous()
        second = self._plain(f"{prefix}.post_attention_layernorm.weight")
        layer = StackedLayer(
            self._plain(f"{prefix}.input_layernorm.weight"),
            self._mixed(attention, order),
            self._out(attention),
            second,
            self._mixture(mlp, "shared_experts") if self.config.routed(n) else self._mlp(mlp),
            key_norm=key_norm,
            front=self._front(attention, order, key_norm) if self.family.sinks else None,
        )
        if not self.family.sandwich:
            return layer
        return replace(
            layer,
            mlp_norm=self._plain(f"{prefix}.pre_mlp_layernorm.weight"),
            attention_post_norm=second,
            mlp_post_norm=self._plain(f"{prefix}.post_mlp_layernorm.weight"),
        )

    @property
    def _missing(self) -> int:
        """Dims that values lack to be as wide as keys."""
        return self.config.head_dim - self.family.value_dim

    def _mixed(self, prefix: str, order: list[int]) -> DeviceMatrix:
        c = self.config
        whole = self._plain(f"{prefix}.qkv_proj.weight")
        turned = (c.heads + c.kv_heads) * c.head_dim
        heads = whole[:turned].view(-1, c.head_dim, c.hidden_size)[:, order].flatten(0, 1)
        values = whole[turned:].view(c.kv_heads, -1, c.hidden_size)
        values = F.pad(values, (0, 0, 0, self._missing)).flatten(0, 1)
        return DeviceMatrix(self.ops.pack(torch.cat((heads, values))))

    def _out(self, prefix: str) -> DeviceMatrix:
        c = self.config
        whole = self._plain(f"{prefix}.o_proj.weight").view(c.hidden_size, c.heads, -1)
        return DeviceMatrix(self.ops.pack(F.pad(whole, (0, self._missing)).flatten(1)))

    def _front(self, prefix: str, order: list[int], key_norm: Tensor) -> Front:
        """The sinks, as wide as the cache's rows."""
        c = self.config
        keys = self._plain(f"{prefix}.param_sink_key")[..., order].contiguous()
        keys = self.ops.rms_norm(keys, key_norm, c.rms_norm_eps)
        values = torch.zeros_like(keys)
        if self.family.sink_values:
            values = F.pad(self._plain(f"{prefix}.param_sink_value"), (0, self._missing))
        room = (0, self.ops.storage.width(c.head_dim) - c.head_dim)
        return Front(keys=F.pad(keys, room), values=F.pad(values, room))


def stacked_class(config: ModelConfig) -> type[Stacked]:
    """`Stacked`, or the one of a family whose tensors lie otherwise."""
    return Stacked if config.pangu_v2 is None else StackedPanguV2
