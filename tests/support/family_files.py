"""Configs of small models of every newer family that GGUF has, and their files."""

import json
from pathlib import Path
from typing import Any

import peer_models as peers
from checkpoints import DENSE, tensors, write
from gguf_tools import write_gguf
from gguf_writer import Pick, f32

BASE: dict[str, Any] = {**DENSE, "num_hidden_layers": 4}
LONGROPE: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
    "long_factor": [1.5, 2, 3, 4, 5, 6],
}
LONGROPE |= {"attention_factor": 1.25}
SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
ALPHA = {"type": "dynamic", "alpha": 50.0, "factor": 1.0}
LOCAL = {"sliding_window": 9, "layer_types": peers.TYPES}
NEAR: dict[str, dict[str, Any]] = {
    "Phi3": {"original_max_position_embeddings": 64, "partial_rotary_factor": 0.75, "rope_scaling": LONGROPE},
    "Phi3 window": {"sliding_window": 12}, "Granite": peers.SCALED, "Ernie4_5": {"tie_word_embeddings": True},
    "SeedOss": {}, "HunYuanDenseV1": {"rope_scaling": ALPHA}, "Olmo2": {"attention_bias": True},
    "Olmo3": {**LOCAL, "rope_scaling": {**SCALING, "attention_factor": 1.25}}, "Exaone4": LOCAL,
    "Exaone4 whole": {"sliding_window": None}, "Ministral3": {"rope_scaling": {**SCALING, **peers.BETA}},
}  # fmt: skip
SMALLER: dict[str, Any] = {**DENSE, "num_hidden_layers": 3, "vocab_size": 64}
SIZED = {"moe_intermediate_size": 32, "num_experts_per_tok": 3, "partial_rotary_factor": 0.5}
LATENT = {**peers.LATENT, "head_dim": None, "norm_topk_prob": True}
SPARSE = {"architectures": ["GlmMoeDsaForCausalLM"], "index_topk": 16, "index_n_heads": 8, "index_head_dim": 32}
SPARSE["routed_scaling_factor"] = 2.5
STRETCHED = {"rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 64}
MIXTURES: dict[str, dict[str, Any]] = {
    "glm": {
        **SMALLER, **SIZED, "architectures": ["Glm4MoeForCausalLM"], "n_routed_experts": 8, "n_shared_experts": 2,
        "attention_bias": True, "use_qk_norm": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
    },
    "glm air": {
        **SMALLER, **SIZED, "architectures": ["Glm4MoeForCausalLM"], "n_routed_experts": 8, "first_k_dense_replace": 2,
        "tie_word_embeddings": True, "num_nextn_predict_layers": 0, "norm_topk_prob": False,
    },
    "ernie": {
        **SMALLER, "architectures": ["Ernie4_5_MoeForCausalLM"], "moe_num_experts": 8, "moe_k": 3,
        "moe_num_shared_experts": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1, "moe_layer_interval": 1,
        "shared_intermediate_size": 48,  # what headers say, and nothing has
    },
    "latent": {
        **SMALLER, **LATENT, "architectures": ["DeepseekV3ForCausalLM"], "scoring_func": "sigmoid", "n_group": 4,
        "topk_group": 2, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1, "rope_scaling": {**STRETCHED, **peers.SAME_SCALES},
    },
    "latent lite": {
        **SMALLER, **LATENT, "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": None, "norm_topk_prob": False,
        "rope_scaling": {**STRETCHED, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "latent older": {
        **SMALLER, **LATENT, "architectures": ["DeepseekV2ForCausalLM"], "scoring_func": "softmax", "n_group": 4,
        "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": False, "older": True,
    },
    "latent glm": {
        **SMALLER, **LATENT, "architectures": ["Glm4MoeLiteForCausalLM"], "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 1.8, "tie_word_embeddings": True,
    },
    "latent sparse": {
        **SMALLER, **LATENT, **SPARSE, "num_nextn_predict_layers": 1, "indexer_types": ["full", "shared", "full"],
    },
    "latent sparse said": {
        **SMALLER, **LATENT, **SPARSE, "indexer_types": ["full", "full", "shared"], "types": [True, True, False],
        "num_nextn_predict_layers": 0,
    },
    "granite": {
        **SMALLER, "architectures": ["GraniteMoeForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 3,
        "intermediate_size": 32, "attention_multiplier": 0.25, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.5, "shared_intermediate_size": 64,
    },
    "hunyuan": {
        **SMALLER, "architectures": ["HunYuanMoEV1ForCausalLM"], "num_experts": 8, "moe_topk": 3,
        "intermediate_size": 32, "num_shared_expert": 1,
    },
    "minimax": {
        **SMALLER, "architectures": ["MiniMaxM2ForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 3,
        "rotary_dim": 8, "intermediate_size": 32,
    },
}  # fmt: skip


def near(folder: Path, name: str, pick: Pick = f32, **fields: Any) -> tuple[Path, Path]:
    """A folder, and a GGUF file of the same."""
    config = {**BASE, "architectures": [f"{name.split()[0]}ForCausalLM"], **NEAR[name], **fields}
    write(folder / "model", config, tensors(config))
    return folder / "model", write_gguf(folder / "model", folder / "m.gguf", pick)


def mixture(folder: Path, name: str, pick: Pick = f32, **fields: Any) -> tuple[Path, Path]:
    """The same of a mixture."""
    said = MIXTURES[name] | fields
    config = {k: v for k, v in said.items() if (name, k) != ("ernie", "shared_intermediate_size")}
    path = write(folder / "model", config, tensors(config))
    (path / "config.json").write_text(json.dumps(said))
    file = write_gguf(path, folder / "m.gguf", pick)
    (path / "config.json").write_text(json.dumps(config))
    return path, file
