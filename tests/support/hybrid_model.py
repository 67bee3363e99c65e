"""A small Qwen3-Next: gated delta nets, attention with gates, experts beside a gated shared one, and a layer that drafts."""

from __future__ import annotations

from typing import Any

from checkpoints import DENSE, tensors
from torch import Tensor

LINEAR, FULL = "linear_attention", "full_attention"
CONFIG: dict[str, Any] = DENSE | {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
CONFIG |= {"vocab_size": 32, "num_hidden_layers": 4, "layer_types": [LINEAR, LINEAR, LINEAR, FULL], "head_dim": 32}
CONFIG |= {"partial_rotary_factor": 0.5, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
CONFIG |= {"linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 32, "num_experts": 8}
CONFIG |= {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
NK, NV, DK, DV = (
    CONFIG[f"linear_{name}"] for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
)


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
