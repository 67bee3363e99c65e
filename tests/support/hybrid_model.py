"""A small Qwen3-Next: gated delta nets, attention with gates, experts beside a gated shared one, and a layer that drafts;
its weights, and the model once more as plainly as can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import DENSE, tensors
from reference_model import ReferenceModel, Weighted
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.model.config import ModelConfig

LINEAR, FULL = "linear_attention", "full_attention"
CONFIG: dict[str, Any] = DENSE | {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
CONFIG |= {"vocab_size": 32, "num_hidden_layers": 4, "layer_types": [LINEAR, LINEAR, LINEAR, FULL], "head_dim": 32}
CONFIG |= {"partial_rotary_factor": 0.5, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
CONFIG |= {"linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 32, "num_experts": 8}
CONFIG |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
SHORT = CONFIG | {"num_hidden_layers": 3, "layer_types": [LINEAR, LINEAR, FULL]}
NK, NV, DK, DV = (
    CONFIG[f"linear_{name}"] for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
)


LAYOUT = ModelConfig.from_json(CONFIG).state_layout


def table(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, those of most norms less one."""
    found = tensors(config, seed)
    for name, weight in found.items():
        if name in ("lm_head.weight", "model.embed_tokens.weight"):
            weight /= 2  # log-probabilities spread less, and so do errors
        if "mtp.pre_fc_norm" in name:
            weight.fill_(1.0)
        weight -= float("norm" in name and "linear_attn" not in name)
    return found


class HybridReference(ReferenceModel):
    norm_offset = 1.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config |= {"partial": int(self.config["head_dim"] * self.config["partial_rotary_factor"])}
        self.config["rotary_layout"] = "halves-first"
        for name in [*self.tensors]:
            if name.endswith("self_attn.k_norm.weight"):
                self.tensors[name.replace("k_norm", "k_layernorm")] = self.tensors[name]
            if name.endswith("self_attn.q_proj.weight"):
                sides = self.tensors[name].unflatten(0, (self.config["num_attention_heads"], 2, -1)).unbind(1)
                self.tensors[name], self.tensors[name.replace("q_proj", "gate")] = (x.flatten(0, 1) for x in sides)

    def _attention(self, name: str, x: Tensor, max_len: int) -> Tensor:
        delta = name.replace("self_attn", "linear_attn")
        attends = f"{name}.q_proj.weight" in self.tensors
        return super()._attention(name, x, max_len) if attends else self._delta(delta, x)

    def _delta(self, name: str, x: Tensor) -> Tensor:
        """[T, H] of a gated delta net, row by row."""
        w = {key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(name)}
        conv, state = torch.zeros(3, 2 * NK * DK + NV * DV).double(), torch.zeros(NV, DK, DV).double()
        out = []
        for row in x:
            window = torch.cat((conv, (w["in_proj_qkv.weight"] @ row)[None]))
            conv = window[1:]
            q, k, v = F.silu((window * w["conv1d.weight"][:, 0].T).sum(0)).split((NK * DK, NK * DK, NV * DV))
            q, k, v = q.view(NK, DK), k.view(NK, DK), v.view(NV, DV)
            q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
            gate = torch.exp(-w["A_log"].exp() * F.softplus(w["in_proj_a.weight"] @ row + w["dt_bias"]))
            beta, heads = (w["in_proj_b.weight"] @ row).sigmoid(), []
            for n in range(NV):
                key, query = k[n * NK // NV], q[n * NK // NV] / DK**0.5
                state[n] *= gate[n]
                state[n] += torch.outer(key, (v[n] - key @ state[n]) * beta[n])
                heads.append(query @ state[n])
            o = torch.stack(heads)
            o = o / (o.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt() * w["norm.weight"]
            z = (w["in_proj_z.weight"] @ row).view(NV, DV)
            out.append(w["out_proj.weight"] @ (o * F.silu(z)).flatten())
        return torch.stack(out)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        if not name.endswith("shared_experts"):
            return super()._mlp(name, x)
        name = name.removesuffix("s")
        return super()._mlp(name, x) * self.linear(f"{name}_gate", x).sigmoid()

    def _best_of_all(self, name: str, x: Tensor, running: int | None) -> Weighted:
        """By a softmax, of those that run alone."""
        best = self.linear(f"{name}.gate", x).sort(descending=True)
        count = self.config["num_experts_per_tok"] if running is None else running
        weights = best.values[:count].softmax(-1)
        return list(zip(weights.tolist(), best.indices.tolist()))
