"""Reading config.json."""

from __future__ import annotations

from typing import Any

import checkpoints
import pytest
import torch

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import active_parameters, parameters

PRO_MOE: dict[str, Any] = {
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
}


def test_counts_of_the_72b_are_the_published_ones() -> None:
    config = ModelConfig.from_json(PRO_MOE)
    assert config.head_dim == 128 and config.context == 131072
    assert parameters(config) / 1e9 == pytest.approx(71.99, abs=0.01)
    assert active_parameters(config) / 1e9 == pytest.approx(16.5, abs=0.01)
    assert active_parameters(config, 8) == active_parameters(config)
    assert active_parameters(config) - active_parameters(config, 7) == 48 * 3 * 5120 * 1344
    assert config.kv_bytes_per_token(torch.bfloat16) == 2 * 48 * 8 * 128 * 2


def test_counts_of_a_dense_model_do_not_know_groups() -> None:
    config = ModelConfig.from_json({**checkpoints.DENSE, "vocab_size": 96})
    assert config.groups == 0
    assert parameters(config) == active_parameters(config) == active_parameters(config, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architectures", ["GPT2LMHeadModel"], "'GPT2LMHeadModel' is not one of the known Pangu"),
        ("architectures", None, "architecture None is not one of"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
        ("hidden_size", None, "hidden_size is missing"),
        ("vocab_size", -1, "vocab_size -1 must be a whole number of at least 1"),
        ("vocab_size", True, "vocab_size True must be"),
        ("num_hidden_layers", 2.5, "num_hidden_layers 2.5 must be"),
        ("num_key_value_heads", 3, "num_attention_heads 4 must be a multiple of .* 3"),
        ("head_dim", 15, "head_dim 15 must be an even number"),
        ("num_experts", 15, "num_experts 15 must be a multiple of num_experts_per_tok 4"),
        ("num_experts_per_tok", 0, "num_experts_per_tok 0 must be"),
        ("mlp_only_layers", [7], r"mlp_only_layers \[7\] must be below num_hidden_layers 3"),
        ("mlp_only_layers", ["a"], "mlp_only_layers .* must be whole numbers"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps nan must be a finite number"),
        ("rope_theta", "big", "rope_theta 'big' must be a number"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings 'yes' must be true or false"),
        (
            "rope_scaling",
            {"type": "longrope", "factor": 2.0},
            "type 'longrope' is not one of the known",
        ),
        ("rope_scaling", {"type": "linear"}, "factor is missing"),
        ("rope_scaling", {"type": "linear", "factor": 0.5}, "factor 0.5 must be at least 1"),
        ("rope_scaling", "linear", "rope_scaling must be an object"),
        ("rope_scaling", {"type": "llama3", "factor": 2.0}, "low_freq_factor is missing"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor 0.5 is not supported"),
        ("torch_dtype", 4, "torch_dtype 4 must be a string"),
    ],
)
def test_refusals_name_field_value_and_limit(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_json({**checkpoints.MOGE, field: value})
    assert "\n" not in str(caught.value)


def test_hidden_size_must_split_into_heads_when_head_dim_is_missing() -> None:
    raw = {**checkpoints.DENSE, "head_dim": None, "hidden_size": 65}
    with pytest.raises(ValueError, match="hidden_size 65 must be a multiple of num_att"):
        ModelConfig.from_json(raw)


def test_scaled_context_and_end_ids() -> None:
    scaling = {"type": "linear", "factor": 4.0}
    raw = {**checkpoints.DENSE, "rope_scaling": scaling, "eos_token_id": [2, 7]}
    config = ModelConfig.from_json(raw)
    assert config.context == 2048
    assert config.eos_ids == (2, 7) and config.bos_id == 1
