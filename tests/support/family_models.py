"""Tiny configs of what families do, and any such model once more as plainly as can be: a whole text at once in
float64, from the tensors by their canonical names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.rope import inverse_frequencies
from fastslow.engine.model.shape import ClampedSwiglu, Router
from fastslow.engine.model.tensors import tensor_shapes

BASE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=96,
    hidden_size=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    max_positions=512,
    intermediate_size=96,
    rms_norm_eps=1e-5,
    eos_ids=(2,),
    bos_id=1,
    dtype="float32",
)
ROUTED = replace(BASE, experts=8, moe_intermediate_size=32, mlp_only_layers=frozenset({1}))
SOFTMAX, CHOSEN = Router("softmax", 3), Router("chosen", 3, bias=True)
SIGMOID = Router("sigmoid", 3, scale=2.5, choice_bias=True)

FAMILIES: dict[str, ModelConfig] = {
    "head norms": replace(BASE, query_norm=True, key_norm=True, head_dim=32),
    "qkv bias": replace(BASE, qkv_bias=True),
    "windows": replace(BASE, windows=(24, 24, 24)),
    "windows in turn": replace(BASE, windows=(0, 140, 7)),
    "unrotated": replace(BASE, unrotated=frozenset({1}), tie_word_embeddings=True),
    "sinks": replace(BASE, sink_logits=True),
    "softmax": replace(ROUTED, router=SOFTMAX, query_norm=True, key_norm=True),
    "softmax as it is": replace(ROUTED, router=replace(SOFTMAX, normed=False)),
    "sigmoid": replace(ROUTED, router=SIGMOID, shared_intermediate_size=32),
    "gpt-oss": replace(
        ROUTED,
        mlp_only_layers=frozenset(),
        router=CHOSEN,
        qkv_bias=True,
        out_bias=True,
        expert_bias=True,
        sink_logits=True,
        windows=(20, 0, 20),
        activation=ClampedSwiglu(limit=2.0),
    ),
}


@dataclass
class PlainModel:
    """A whole text at once, from the raw tensors."""

    config: ModelConfig
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> PlainModel:
        """Of a checkpoint folder."""
        config = ModelConfig.from_folder(folder)
        with floats(folder, config) as read:
            return cls(config, {name: read(name) for name in tensor_shapes(config)})

    def logits(self, tokens: list[int], experts: int | None = None) -> Tensor:
        """float64 [T, V]."""
        c = self.config
        x = self._at("model.embed_tokens.weight")[tokens]
        for n in range(c.layers):
            layer = f"model.layers.{n}"
            x = x + self._attention(n, self._norm(f"{layer}.input_layernorm", x))
            fresh = self._norm(f"{layer}.post_attention_layernorm", x)
            routed = self._experts(f"{layer}.mlp", fresh, experts) if c.routed(n) else None
            x = x + (self._mlp(f"{layer}.mlp", fresh, False) if routed is None else routed)
        head = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
        return self._linear(head, self._norm("model.norm", x))

    def _at(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self._at(f"{name}.weight").T
        return y + self._at(f"{name}.bias") if f"{name}.bias" in self.tensors else y

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean = (x * x).mean(-1, keepdim=True)
        return x / (mean + self.config.rms_norm_eps).sqrt() * self._at(f"{name}.weight")

    def _mlp(self, name: str, x: Tensor, expert: bool) -> Tensor:
        gate, up = (self._linear(f"{name}.{side}_proj", x) for side in ("gate", "up"))
        clamped = self.config.activation
        if isinstance(clamped, ClampedSwiglu):
            gate, up = gate.clamp(max=clamped.limit), up.clamp(-clamped.limit, clamped.limit)
            inner = gate * torch.sigmoid(clamped.alpha * gate) * (up + 1)
        else:
            inner = gate * torch.sigmoid(gate) * up
        return self._linear(f"{name}.down_proj", inner)

    def _experts(self, name: str, x: Tensor, wanted: int | None) -> Tensor:
        router = self.config.router
        assert router is not None
        rows = []
        for row in x:
            logits = self._linear(f"{name}.gate", row)
            scores = logits.sigmoid() if router.kind == "sigmoid" else logits.softmax(-1)
            ranks = scores
            if router.choice_bias:
                ranks = scores + self._at(f"{name}.gate.e_score_correction_bias")
            best = sorted(range(len(ranks)), key=lambda e: (-float(ranks[e]), e))
            running = best[: router.top_k if wanted is None else min(wanted, router.top_k)]
            total = sum(float(scores[e]) for e in running)
            if not router.normed and router.kind != "chosen":
                total = 1.0
            y = torch.zeros_like(row)
            if self.config.shared_intermediate_size:
                y = self._mlp(f"{name}.shared_expert", row, False)
            for e in running:
                weight = float(scores[e]) / total * router.scale
                y = y + weight * self._mlp(f"{name}.experts.{e}", row, True)
            rows.append(y)
        return torch.stack(rows)

    def _attention(self, n: int, x: Tensor) -> Tensor:
        c, name = self.config, f"model.layers.{n}.self_attn"
        q, k, v = (
            self._linear(f"{name}.{side}_proj", x).view(len(x), -1, c.head_dim) for side in "qkv"
        )
        q = self._norm(f"{name}.q_norm", q) if c.query_norm else q
        k = self._norm(f"{name}.k_norm", k) if c.key_norm else k
        if n not in c.unrotated:
            q, k = self._turned(q), self._turned(k)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(c.head_dim)
        place = torch.arange(len(x))
        hidden = place > place[:, None]
        if c.window(n):
            hidden |= place <= place[:, None] - c.window(n)
        scores = scores.masked_fill(hidden, -torch.inf)
        if c.sink_logits:
            sinks = self._at(f"{name}.sinks").view(-1, 1, 1).expand(-1, len(x), 1)
            weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        seen = torch.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return self._linear(f"{name}.o_proj", seen)

    def _turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(len(x))[:, None] * inverse_frequencies(self.config)
        scaling = self.config.rope_scaling
        size = 1.0 if scaling is None else scaling.attention_factor
        cos, sin = (torch.cat((y, y), -1)[:, None] * size for y in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin
