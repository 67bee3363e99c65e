"""Tiny checkpoints of openPangu Pro MoE V2."""

from pathlib import Path
from typing import Any

import checkpoints
from checkpoints import DENSE, write
from torch import Tensor

MOE: dict[str, Any] = {
    **{name: value for name, value in DENSE.items() if name != "head_dim"},
    "architectures": ["PanguProMoEV2ForCausalLM"], "model_type": "PanguProMoE", "num_hidden_layers": 3,
    "qk_nope_dim": 16, "qk_rope_dim": 8, "v_channels": 16, "mlp_only_layers": [0], "num_experts": 10,
    "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
    "norm_topk_prob": True, "router_enable_expert_bias": True, "routed_scaling_factor": 2.5, "sandwich_norm": True,
    "param_sink_number": 5, "param_sink_with_value": True, "num_mtp_layers": 1,
}  # fmt: skip
PUBLISHED = {  # names in files, by the engine's
    ".mlp.shared_expert.": ".mlp.shared_experts.", ".self_attn.k_norm.": ".self_attn.k_layernorm.",
    ".pre_feedforward_layernorm.": ".pre_mlp_layernorm.", ".post_feedforward_layernorm.": ".post_mlp_layernorm.",
}  # fmt: skip


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights by the published names, the draft layer's too."""
    table = checkpoints.tensors(config, seed)
    for ours, theirs in PUBLISHED.items():
        table = {name.replace(ours, theirs): x for name, x in table.items()}
    return table


def write_moe(folder: Path, seed: int = 0, shards: int = 1, **fields: Any) -> Path:
    """A checkpoint; `fields` are config.json's."""
    config = {**MOE, **fields}
    return write(folder, config, tensors(config, seed), shards)
