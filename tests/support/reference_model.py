"""The models once more, as plainly as can be: a whole text at once, in float64, from the raw files.

It knows Llama, grouped experts, openPangu Pro MoE V2, and what `test_new_family.py` adds. The other families are
held against transformers (`test_families.py`).
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

Weighted = list[tuple[float, int]]  # experts that run, with their weights


class ReferenceModel:
    """Of a checkpoint folder; keeps no cache."""

    norm_offset = 0.0  # what is added to norm weights
    embedding_scale = 1.0
    unseen: Sequence[int] = ()  # rows that no later one sees
    activation: Callable[[Tensor], Tensor] = staticmethod(F.silu)

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors: dict[str, Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.tensors |= {name: t.double() for name, t in load_file(file).items()}

    def logits(self, tokens: list[int], groups: int | None = None, max_len: int = 0) -> Tensor:
        """[T, V], row t after tokens[: t + 1]."""
        head = "lm_head" if "lm_head.weight" in self.tensors else "model.embed_tokens"
        last = self.norm("model.norm", self.hidden(tokens, groups, max_len))
        return self._capped("final_logit_softcapping", self.linear(head, last))

    def hidden(self, tokens: list[int], groups: int | None = None, max_len: int = 0) -> Tensor:
        """[T, H] before the last norm."""
        x = self.tensors["model.embed_tokens.weight"][tokens] * self.embedding_scale
        for n in range(self.config["num_hidden_layers"]):
            x = self.layer(n, x, groups, max_len)
        return x

    def layer(self, n: int, x: Tensor, groups: int | None = None, max_len: int = 0) -> Tensor:
        layer = f"model.layers.{n}"
        fresh = self.norm(f"{layer}.input_layernorm", x)
        moved = self._attention(f"{layer}.self_attn", fresh, max_len)
        for block in ("mlp", "feedforward"):  # V2's name, and Gemma's
            if f"{layer}.post_{block}_layernorm.weight" in self.tensors:
                x = x + self.norm(f"{layer}.post_attention_layernorm", moved)
                fresh = self.norm(f"{layer}.pre_{block}_layernorm", x)
                moved = self._feed_forward(f"{layer}.mlp", fresh, groups)
                return x + self.norm(f"{layer}.post_{block}_layernorm", moved)
        x = x + moved
        fresh = self.norm(f"{layer}.post_attention_layernorm", x)
        return x + self._feed_forward(f"{layer}.mlp", fresh, groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """RMS norm; nothing where the model has no such norm."""
        if f"{name}.weight" not in self.tensors:
            return x
        size = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        scaled: Tensor = x / size * (self.norm_offset + self.tensors[f"{name}.weight"])
        return scaled

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)

    def _capped(self, field: str, x: Tensor) -> Tensor:
        cap = self.config.get(field)
        return x if cap is None else cap * torch.tanh(x / cap)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        gate, up = (self.linear(f"{name}.{side}_proj", x) for side in ("gate", "up"))
        return self.linear(f"{name}.down_proj", type(self).activation(gate) * up)

    def _feed_forward(self, name: str, x: Tensor, groups: int | None) -> Tensor:
        if f"{name}.gate.weight" not in self.tensors:
            return self._mlp(name, x)
        grouped = f"{name}.router_scale" in self.tensors
        choose = self._best_of_groups if grouped else self._best_of_all
        moved = self._mlp(f"{name}.shared_expert{'' if grouped else 's'}", x)
        for row, y in zip(x, moved, strict=True):
            for weight, e in choose(name, row, groups):
                y += weight * self._mlp(f"{name}.experts.{e}", row)
        return moved

    def _best_of_groups(self, name: str, x: Tensor, groups: int | None) -> Weighted:
        """The first of the best of each group, of which the heaviest run."""
        probs = self.linear(f"{name}.gate", x).softmax(-1).tolist()
        scale = self.tensors[f"{name}.router_scale"].flatten().tolist()
        count = self.config["num_experts_per_tok"]
        size, chosen = len(probs) // count, []
        for g in range(count):
            best = max(range(g * size, (g + 1) * size), key=lambda e: probs[e])
            chosen.append((-probs[best] * scale[best], best))
        return [(-weight, e) for weight, e in sorted(chosen)[: count if groups is None else groups]]

    def _best_of_all(self, name: str, x: Tensor, running: int | None) -> Weighted:
        """By sigmoid scores; a bias counts for the choice alone."""
        scores = self.linear(f"{name}.gate", x).sigmoid()
        shifted = scores + self.tensors.get(f"{name}.gate.e_score_correction_bias", 0)
        order = sorted(range(len(scores)), key=lambda e: -float(shifted[e]))
        chosen = order[: self.config["num_experts_per_tok"]][:running]
        total = sum(float(scores[e]) for e in chosen) if self.config["norm_topk_prob"] else 1.0
        factor = self.config["routed_scaling_factor"]
        return [(float(scores[e]) / total * factor, e) for e in chosen]

    def _attention(self, name: str, x: Tensor, max_len: int) -> Tensor:
        c, count = self.config, len(x)
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        if "v_channels" in c:
            dim = c["qk_nope_dim"] + c["qk_rope_dim"]
            sizes = [heads * dim, kv_heads * dim, kv_heads * c["v_channels"]]
            sides = torch.split(self.linear(f"{name}.qkv_proj", x), sizes, -1)
        else:
            sides = tuple(self.linear(f"{name}.{side}_proj", x) for side in "qkv")
        q, k, v = (y.view(count, n, -1) for y, n in zip(sides, (heads, kv_heads, kv_heads)))
        q = self._turned(self.norm(f"{name}.q_norm", q), max_len)
        k = self._turned(self.norm(f"{name}.k_layernorm", k), max_len)
        sinks = c.get("param_sink_number", 0)
        if sinks:  # in front of every text, and never rotated
            nothing = torch.zeros(sinks, *v.shape[1:], dtype=v.dtype)
            k = torch.cat((self.norm(f"{name}.k_layernorm", self.tensors[f"{name}.param_sink_key"]), k))
            v = torch.cat((self.tensors.get(f"{name}.param_sink_value", nothing), v))
        k, v = (y.repeat_interleave(heads // kv_heads, 1) for y in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores = self._capped("attn_logit_softcapping", scores)
        later = torch.ones(count, count + sinks).triu(1 + sinks).bool()
        for row in self.unseen:
            later[row + 1 :, sinks + row] = True
        seen = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v).reshape(count, -1)
        if f"{name}.gate.weight" in self.tensors:
            seen = seen * self.linear(f"{name}.gate", x).sigmoid()
        return self.linear(f"{name}.o_proj", seen)

    def _turned(self, x: Tensor, max_len: int) -> Tensor:
        """[T, heads, dim], each position turned by its angles."""
        c, dim, out = self.config, x.shape[-1], x.clone()
        part = c.get("qk_rope_dim") or c.get("partial")
        layout = c.get("rotary_layout") or ("interleaved-first" if part else "halves-first")
        width = part or dim
        first = dim - width if layout == "halves-last" else 0
        for i, rate in enumerate(self._rates(width, max_len)):
            a, b = first + i, first + width // 2 + i
            if layout == "interleaved-first":
                a, b = 2 * i, 2 * i + 1
            angle = torch.arange(len(x))[:, None].double() * rate
            out[..., a] = x[..., a] * angle.cos() - x[..., b] * angle.sin()
            out[..., b] = x[..., b] * angle.cos() + x[..., a] * angle.sin()
        return out

    def _rates(self, width: int, max_len: int) -> list[float]:
        theta, scaling = self.config["rope_theta"], self.config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        factor = scaling.get("factor", 1.0)
        if kind == "dynamic":
            longest = self.config["max_position_embeddings"]
            grown = factor * max(max_len, longest) / longest - (factor - 1)
            theta = theta * grown ** (width / (width - 2))
        rates = [1 / theta ** (i / width) for i in range(0, width, 2)]
        if kind == "linear":
            return [rate / factor for rate in rates]
        return [_llama3(rate, scaling) for rate in rates] if kind == "llama3" else rates


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
