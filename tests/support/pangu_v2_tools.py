"""Tiny checkpoints of openPangu Pro MoE V2, and the model once more, as plainly as can be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from checkpoints import write
from reference_model import ReferenceModel
from torch import Tensor

MOE: dict[str, Any] = {
    "architectures": ["PanguProMoEV2ForCausalLM"],
    "model_type": "PanguProMoE",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "qk_nope_dim": 16,
    "qk_rope_dim": 8,
    "v_channels": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "mlp_only_layers": [0],
    "num_experts": 10,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "norm_topk_prob": True,
    "router_enable_expert_bias": True,
    "routed_scaling_factor": 2.5,
    "sandwich_norm": True,
    "param_sink_number": 5,
    "param_sink_with_value": True,
    "num_mtp_layers": 1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights, the draft layer's too; every part matters."""
    random = torch.Generator().manual_seed(seed)
    hidden, kv_heads = config["hidden_size"], config["num_key_value_heads"]
    heads, values = config["num_attention_heads"], config["v_channels"]
    dim = config["qk_nope_dim"] + config["qk_rope_dim"]
    table: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, gain: float = 1.0) -> None:
        table[name] = torch.randn(shape, generator=random) * gain

    def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        normal(f"{name}.weight", rows, columns, gain=gain * columns**-0.5)

    def norm(name: str, size: int = hidden, about: float = 1.0) -> None:
        table[f"{name}.weight"] = about + 0.2 * torch.randn(size, generator=random)

    def mlp(name: str, inner: int) -> None:
        linear(f"{name}.gate_proj", inner, hidden, 1.5)
        linear(f"{name}.up_proj", inner, hidden, 1.5)
        linear(f"{name}.down_proj", hidden, inner, 1.5)

    normal("model.embed_tokens.weight", config["vocab_size"], hidden, gain=3 * hidden**-0.5)
    last = config["num_hidden_layers"]
    for n in range(last + config["num_mtp_layers"]):
        layer = f"model.layers.{n}"
        attention = f"{layer}.self_attn"
        norm(f"{layer}.input_layernorm")
        linear(f"{attention}.qkv_proj", (heads + kv_heads) * dim + kv_heads * values, hidden, 1.5)
        linear(f"{attention}.o_proj", hidden, heads * values, 1.5)
        norm(f"{attention}.k_layernorm", dim, about=1.5)
        sinks = config["param_sink_number"]
        if sinks:
            normal(f"{attention}.param_sink_key", sinks, kv_heads, dim)
            if config["param_sink_with_value"]:
                normal(f"{attention}.param_sink_value", sinks, kv_heads, values)
        norm(f"{layer}.post_attention_layernorm")
        if config["sandwich_norm"]:
            norm(f"{layer}.pre_mlp_layernorm")
            norm(f"{layer}.post_mlp_layernorm")
        if n in config["mlp_only_layers"]:
            mlp(f"{layer}.mlp", config["intermediate_size"])
        else:
            linear(f"{layer}.mlp.gate", config["num_experts"], hidden, 1.5)
            if config["router_enable_expert_bias"]:
                normal(f"{layer}.mlp.gate.e_score_correction_bias", config["num_experts"], gain=0.2)
            mlp(f"{layer}.mlp.shared_experts", config["shared_expert_intermediate_size"])
            for e in range(config["num_experts"]):
                mlp(f"{layer}.mlp.experts.{e}", config["moe_intermediate_size"])
        if n >= last:
            norm(f"{layer}.enorm")
            norm(f"{layer}.hnorm")
            linear(f"{layer}.eh_proj", hidden, 2 * hidden)
            norm(f"{layer}.shared_head.norm")
    norm("model.norm")
    linear("lm_head", config["vocab_size"], hidden, 3.0)
    return table


def write_moe(folder: Path, seed: int = 0, shards: int = 1, **fields: Any) -> Path:
    """A checkpoint; `fields` are config.json's."""
    config = {**MOE, **fields}
    return write(folder, config, tensors(config, seed), shards)


class ReferenceMoe(ReferenceModel):
    """Token by token, float64, from the raw tensors."""

    def _layer(
        self, n: int, hidden: list[Tensor], groups: int | None, max_len: int
    ) -> list[Tensor]:
        layer = f"model.layers.{n}"
        sandwich = self.config["sandwich_norm"]
        seen = self._attention(
            f"{layer}.self_attn",
            [self._norm(f"{layer}.input_layernorm", x) for x in hidden],
            max_len,
        )
        out = []
        for x, moved in zip(hidden, seen, strict=True):
            if sandwich:
                x = x + self._norm(f"{layer}.post_attention_layernorm", moved)
                y = self._norm(f"{layer}.pre_mlp_layernorm", x)
            else:
                x = x + moved
                y = self._norm(f"{layer}.post_attention_layernorm", x)
            dense = n in self.config["mlp_only_layers"]
            y = self._mlp(f"{layer}.mlp", y) if dense else self._experts(f"{layer}.mlp", y, groups)
            out.append(x + (self._norm(f"{layer}.post_mlp_layernorm", y) if sandwich else y))
        return out

    def _experts(self, name: str, x: Tensor, running: int | None) -> Tensor:
        scores = [1 / (1 + math.exp(-float(s))) for s in self.tensors[f"{name}.gate.weight"] @ x]
        bias = self.tensors.get(f"{name}.gate.e_score_correction_bias")
        shifted = [s + (0.0 if bias is None else float(bias[e])) for e, s in enumerate(scores)]
        order = sorted(range(len(scores)), key=lambda e: -shifted[e])
        chosen = order[: self.config["num_experts_per_tok"]][:running]
        total = sum(scores[e] for e in chosen) if self.config["norm_topk_prob"] else 1.0
        y = self._mlp(f"{name}.shared_experts", x)
        for e in chosen:
            weight = scores[e] / total * self.config["routed_scaling_factor"]
            y = y + weight * self._mlp(f"{name}.experts.{e}", x)
        return y

    def _attention(self, name: str, normed: list[Tensor], max_len: int) -> list[Tensor]:
        c = self.config
        heads, kv_heads, values_dim = (
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["v_channels"],
        )
        dim = c["qk_nope_dim"] + c["qk_rope_dim"]
        keys, values = [], []
        for s in range(c["param_sink_number"]):
            sink = self.tensors[f"{name}.param_sink_key"][s]
            keys.append(torch.stack([self._norm(f"{name}.k_layernorm", head) for head in sink]))
            learned = self.tensors.get(f"{name}.param_sink_value")
            nothing = torch.zeros(kv_heads, values_dim, dtype=torch.float64)
            values.append(nothing if learned is None else learned[s])
        out = []
        for t, x in enumerate(normed):
            mixed = self._linear(f"{name}.qkv_proj", x)
            q, k, v = torch.split(mixed, [heads * dim, kv_heads * dim, kv_heads * values_dim])
            k = torch.stack([self._norm(f"{name}.k_layernorm", h) for h in k.view(kv_heads, dim)])
            keys.append(torch.stack([self._turn(head, t) for head in k]))
            values.append(v.view(kv_heads, values_dim))
            seen = []
            for h, query in enumerate(q.view(heads, dim)):
                own = h // (heads // kv_heads)
                query = self._turn(query, t)
                scores = torch.stack([query @ key[own] for key in keys]) / math.sqrt(dim)
                weights = torch.softmax(scores, 0)
                seen.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)))
            out.append(self._linear(f"{name}.o_proj", torch.cat(seen)))
        return out

    def _turn(self, head: Tensor, position: int) -> Tensor:
        turning, out = self.config["qk_rope_dim"], head.clone()
        last = self.config.get("rotary_layout") == "halves-last"
        first = len(head) - turning if last else 0
        for i in range(turning // 2):
            rate = self.config["rope_theta"] ** (-2 * i / turning)
            a, b = (first + i, first + turning // 2 + i) if last else (2 * i, 2 * i + 1)
            c, s = math.cos(position * rate), math.sin(position * rate)
            out[a], out[b] = head[a] * c - head[b] * s, head[b] * c + head[a] * s
        return out
