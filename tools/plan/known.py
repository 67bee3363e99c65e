"""Models that can be planned for without their folder: the fields of their public config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import nearest

PRO_MOE = {
    "architectures": ["PanguProMoEForCausalLM"],
    "vocab_size": 153376,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 16000000.0,
    "rms_norm_eps": 1e-5,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1344,
    "shared_expert_intermediate_size": 5376,
    "torch_dtype": "bfloat16",
}
R_72B = {
    "architectures": ["PanguProMoEV2ForCausalLM"],
    "vocab_size": 153600,
    "hidden_size": 4608,
    "intermediate_size": 10240,
    "num_hidden_layers": 50,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "qk_nope_dim": 128,
    "qk_rope_dim": 64,
    "v_channels": 128,
    "max_position_embeddings": 131072,
    "rope_theta": 25600000.0,
    "rms_norm_eps": 1e-5,
    "mlp_only_layers": [0, 1, 2, 3],
    "num_experts": 80,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1280,
    "shared_expert_intermediate_size": 2560,
    "router_enable_expert_bias": True,
    "routed_scaling_factor": 2.5,
    "sandwich_norm": True,
    "param_sink_number": 128,
    "param_sink_with_value": True,
    "num_mtp_layers": 1,
    "torch_dtype": "bfloat16",
}
EMBEDDED_7B = {
    "architectures": ["PanguEmbeddedForCausalLM"],
    "vocab_size": 153376,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 16000000.0,
    "torch_dtype": "bfloat16",
}
EMBEDDED_1B = {
    **EMBEDDED_7B,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 26,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "rope_theta": 4000000.0,
    "tie_word_embeddings": True,
}
KNOWN: dict[str, dict[str, Any]] = {
    "openpangu-pro-moe-72b": PRO_MOE,
    "openpangu-r-72b": R_72B,
    "openpangu-embedded-7b": EMBEDDED_7B,
    "openpangu-embedded-1b": EMBEDDED_1B,
}


def config_of(model: str) -> ModelConfig:
    """A known name, a checkpoint folder, a config.json, or a built-in model.

    Raises:
        ValueError: none of them, or a config.json that does not fit.
    """
    if model in KNOWN:
        return ModelConfig.from_json(KNOWN[model])
    path = Path(model)
    if path.is_dir():
        return ModelConfig.from_folder(path)
    if path.is_file():
        try:
            return ModelConfig.from_json(json.loads(path.read_text("utf-8")))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no config.json of a known model: {error}") from None
    from fastslow.models.locate import BUILTIN, builtin_path

    if model in BUILTIN:
        return ModelConfig.from_folder(builtin_path(model))
    raise ValueError(f"model={model!r} is unknown{nearest(model, (*KNOWN, *BUILTIN))}")
