"""The dense model in plain torch: the teacher."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.models.dense import Dense

POSITIONS = 8192  # of the longest row


def rotary(positions: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, dim] in float32, half-split."""
    freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), freq)
    both = torch.cat((angle, angle), -1)
    return both.cos(), both.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * cos_TD + torch.cat((-second, first), -1) * sin_TD


class Teacher(Dense):
    """A frozen dense model that runs; see `Dense`."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(folder, dtype)
        self.cos, self.sin = rotary(POSITIONS, self.config.head_dim, self.config.rope_theta)

    def linear(self, x: Tensor, layer: int, name: str) -> Tensor:
        return F.linear(x, self.weight(layer, name), self.bias(layer, name))

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"].to(x.dtype)
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps)

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Final normed hidden states [B, T, hidden] of int64 token ids."""
        x = self.embedding[tokens_BT]
        for layer in range(self.config.layers):
            name = f"model.layers.{layer}"
            y = self.norm(x, f"{name}.input_layernorm")
            mixed = attend(
                self.config, [self.linear(y, layer, part) for part in "qkv"], self.cos, self.sin
            )
            x = x + self.linear(mixed, layer, "o")
            y = self.norm(x, f"{name}.post_attention_layernorm")
            h = F.silu(self.linear(y, layer, "gate")) * self.linear(y, layer, "up")
            x = x + self.linear(h, layer, "down")
        return self.norm(x, "model.norm")


def attend(config: ModelConfig, parts: list[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
    """Causal grouped-query attention over projected q, k, v [B, T, heads * head_dim]."""
    q, k, v = (torch.unflatten(p, -1, (-1, config.head_dim)).transpose(1, 2) for p in parts)
    cos_TD, sin_TD = cos[: q.shape[2]].to(q.dtype), sin[: q.shape[2]].to(q.dtype)
    q, k = rotate(q, cos_TD, sin_TD), rotate(k, cos_TD, sin_TD)
    repeat = config.heads // config.kv_heads
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)
