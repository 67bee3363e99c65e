"""The models once more, as plainly as can be: token by token, float64, from the raw tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class ReferenceModel:
    """Reads a checkpoint folder; `logits` runs a whole text without a cache."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors: dict[str, Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.tensors |= {name: t.double() for name, t in load_file(file).items()}

    def logits(self, tokens: list[int], groups: int | None = None, max_len: int = 0) -> Tensor:
        """float64 [T, V], row t after tokens[: t + 1]."""
        hidden = [self.tensors["model.embed_tokens.weight"][t] for t in tokens]
        for n in range(self.config["num_hidden_layers"]):
            hidden = self._layer(n, hidden, groups, max_len)
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        return torch.stack([head @ self._norm("model.norm", x) for x in hidden])

    def _layer(
        self, n: int, hidden: list[Tensor], groups: int | None, max_len: int
    ) -> list[Tensor]:
        layer = f"model.layers.{n}"
        normed = [self._norm(f"{layer}.input_layernorm", x) for x in hidden]
        seen = self._attention(f"{layer}.self_attn", normed, max_len)
        hidden = [x + y for x, y in zip(hidden, seen, strict=True)]
        routed = f"{layer}.mlp.gate.weight" in self.tensors
        out = []
        for x in hidden:
            y = self._norm(f"{layer}.post_attention_layernorm", x)
            moved = (
                self._moge(f"{layer}.mlp", y, groups) if routed else self._mlp(f"{layer}.mlp", y)
            )
            out.append(x + moved)
        return out

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean = sum(float(v) ** 2 for v in x) / len(x)
        return x / math.sqrt(mean + self.config["rms_norm_eps"]) * self.tensors[f"{name}.weight"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = self.tensors[f"{name}.weight"] @ x
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        gate = self._linear(f"{name}.gate_proj", x)
        return self._linear(
            f"{name}.down_proj", gate * torch.sigmoid(gate) * self._linear(f"{name}.up_proj", x)
        )

    def _moge(self, name: str, x: Tensor, groups: int | None) -> Tensor:
        scores = (self.tensors[f"{name}.gate.weight"] @ x).tolist()
        top = max(scores)
        exps = [math.exp(s - top) for s in scores]
        total = sum(exps)
        scale = self.tensors[f"{name}.router_scale"].flatten().tolist()
        count = self.config["num_experts_per_tok"]
        size = len(scores) // count
        chosen = []
        for g in range(count):
            best = g * size
            for e in range(g * size, (g + 1) * size):
                if exps[e] > exps[best]:
                    best = e
            chosen.append((-exps[best] / total * scale[best], g, best))
        keep = sorted(chosen)[: count if groups is None else groups]
        y = self._mlp(f"{name}.shared_expert", x)
        for weight, _, e in keep:
            y = y - weight * self._mlp(f"{name}.experts.{e}", x)
        return y

    def _attention(self, name: str, normed: list[Tensor], max_len: int) -> list[Tensor]:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        dim = self.config["head_dim"]
        rates = self._rates(max_len)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        out = []
        for t, x in enumerate(normed):
            q = self._linear(f"{name}.q_proj", x).view(heads, dim)
            q = torch.stack([_turn(head, t, rates) for head in q])
            k = self._linear(f"{name}.k_proj", x).view(kv_heads, dim)
            keys.append(torch.stack([_turn(head, t, rates) for head in k]))
            values.append(self._linear(f"{name}.v_proj", x).view(kv_heads, dim))
            mixed = []
            for h in range(heads):
                own = h // (heads // kv_heads)
                scores = torch.stack([q[h] @ past[own] for past in keys]) / math.sqrt(dim)
                weights = torch.softmax(scores, 0)
                mixed.append(sum(w * v[own] for w, v in zip(weights, values, strict=True)))
            out.append(self._linear(f"{name}.o_proj", torch.cat(mixed)))
        return out

    def _rates(self, max_len: int) -> list[float]:
        dim, theta = self.config["head_dim"], self.config["rope_theta"]
        scaling = self.config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        factor = scaling.get("factor", 1.0)
        if kind == "dynamic":
            longest = self.config["max_position_embeddings"]
            grown = factor * max(max_len, longest) / longest - (factor - 1)
            theta = theta * grown ** (dim / (dim - 2))
        rates = [1 / theta ** (i / dim) for i in range(0, dim, 2)]
        if kind == "linear":
            return [rate / factor for rate in rates]
        if kind == "llama3":
            return [_llama3(rate, scaling) for rate in rates]
        return rates


def _llama3(rate: float, scaling: dict[str, Any]) -> float:
    wave = 2 * math.pi / rate
    factor: float = scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wave > original / low:
        return rate / factor
    if wave < original / high:
        return rate
    smooth: float = (original / wave - low) / (high - low)
    return (1 - smooth) * rate / factor + smooth * rate


def _turn(head: Tensor, position: int, rates: list[float]) -> Tensor:
    half = len(rates)
    out = torch.empty_like(head)
    for i, rate in enumerate(rates):
        c, s = math.cos(position * rate), math.sin(position * rate)
        out[i] = head[i] * c - head[i + half] * s
        out[i + half] = head[i + half] * c + head[i] * s
    return out
