"""A decoder of any family once more, as plainly as can be: whole texts, float64, from the raw tensors."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastslow.engine.model.config import ClampedSwiglu, ModelConfig
from fastslow.engine.model.shape import Router


class ReferenceDecoder:
    """Reads a checkpoint folder whose tensors have canonical names; `logits` runs a text without a cache."""

    def __init__(self, folder: Path) -> None:
        self.config = ModelConfig.from_folder(folder)
        self.tensors: dict[str, Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.tensors |= {name: t.double() for name, t in load_file(file).items()}

    def logits(self, tokens: list[int], experts: int | None = None) -> Tensor:
        """float64 [T, V], row t after tokens[: t + 1]."""
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for n in range(self.config.layers):
            layer = f"model.layers.{n}"
            x = x + self._attention(n, self._norm(f"{layer}.input_layernorm", x))
            fresh = self._norm(f"{layer}.post_attention_layernorm", x)
            if self.config.routed(n):
                x = x + torch.stack([self._experts(f"{layer}.mlp", row, experts) for row in fresh])
            else:
                x = x + self._mlp(f"{layer}.mlp", fresh)
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        return self._norm("model.norm", x) @ head.T

    def _norm(self, name: str, x: Tensor) -> Tensor:
        size = (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return x / size * self.tensors[f"{name}.weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        gate, up = (self._linear(f"{name}.{side}_proj", x) for side in ("gate", "up"))
        clamped = self.config.activation
        if not isinstance(clamped, ClampedSwiglu):
            return self._linear(f"{name}.down_proj", gate * gate.sigmoid() * up)
        gate = gate.clamp(max=clamped.limit)
        up = up.clamp(-clamped.limit, clamped.limit)
        return self._linear(f"{name}.down_proj", gate * (clamped.alpha * gate).sigmoid() * (up + 1))

    def _experts(self, name: str, x: Tensor, running: int | None) -> Tensor:
        router: Router | None = self.config.router
        assert router is not None
        logits = self._linear(f"{name}.gate", x)
        order = sorted(range(len(logits)), key=lambda e: -float(logits[e]))
        chosen = order[: router.top_k][:running]
        every = logits.softmax(-1) if router.kind == "softmax" else logits.exp()
        total = sum(float(every[e]) for e in chosen)
        divisor = total if router.normed or router.kind == "chosen" else 1.0
        y = torch.zeros_like(x)
        for e in chosen:
            weight = float(every[e]) / divisor * router.scale
            y = y + weight * self._mlp(f"{name}.experts.{e}", x)
        return y

    def _attention(self, n: int, x: Tensor) -> Tensor:
        c, name, count = self.config, f"model.layers.{n}.self_attn", len(x)
        q, k, v = (
            self._linear(f"{name}.{side}_proj", x).view(count, -1, c.head_dim) for side in "qkv"
        )
        q = self._norm(f"{name}.q_norm", q) if c.query_norm else q
        k = self._norm(f"{name}.k_norm", k) if c.key_norm else k
        if n not in c.unrotated:
            q, k = self._turned(q), self._turned(k)
        k, v = (side.repeat_interleave(c.heads // c.kv_heads, 1) for side in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(c.head_dim)
        back = torch.arange(count)[:, None] - torch.arange(count)
        hidden = (back < 0) | (back >= (c.window(n) or count))
        scores = scores.masked_fill(hidden, -math.inf)
        if c.sink_logits:
            sinks = self.tensors[f"{name}.sinks"].view(-1, 1, 1).expand(-1, count, 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., :count]
        return self._linear(f"{name}.o_proj", torch.einsum("hts,shd->thd", weights, v).flatten(1))

    def _turned(self, x: Tensor) -> Tensor:
        c = self.config
        rates = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        size, yarn = 1.0, c.rope_scaling
        if yarn is not None:
            assert yarn.kind == "yarn"
            size, length = yarn.attention_factor, yarn.original_max_positions

            def pair(turns: float) -> float:
                at = c.head_dim * math.log(length / (turns * 2 * math.pi))
                return at / (2 * math.log(c.rope_theta))

            low, high = pair(yarn.fast_turns), pair(yarn.slow_turns)
            if yarn.whole_pairs:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, c.head_dim - 1)
            stretched = ((torch.arange(len(rates)) - low) / max(high - low, 0.001)).clamp(0, 1)
            rates = rates * (1 - stretched) + rates / yarn.factor * stretched
        angles = torch.arange(len(x), dtype=torch.float64)[:, None, None] * rates
        left, right = x.chunk(2, -1)
        cos, sin = angles.cos() * size, angles.sin() * size
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
