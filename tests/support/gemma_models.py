"""Tiny random models of Gemma 3 and 4, made and run by transformers."""

import math
from typing import Any

import peer_models as peers
import torch
from torch import Tensor

S, F = "sliding_attention", "full_attention"
SMALL: dict[str, Any] = {**peers.SMALL, "max_position_embeddings": 1024, "head_dim": 16, "sliding_window": 20}
FOUR: dict[str, Any] = {"global_head_dim": 32, "layer_types": [S, F, S, F], "final_logit_softcapping": 30.0}
BY_TOKEN = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 96}
SHARED = {**FOUR, **BY_TOKEN, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
MADE = {**FOUR, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
EXPERTS = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 32}
EACH = {"layer_types": [S, F, S, F]}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
HALF = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e5}
LOCAL = {S: {"rope_type": "default", "rope_theta": 1e4}}

# Class of transformers, and the fields of each shape.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("Gemma3", {"query_pre_attn_scalar": 24, "layer_types": [S, F, S, F]}),
    "gemma3 stretched": ("Gemma3", {"rope_parameters": {F: LINEAR, **LOCAL}, "final_logit_softcapping": 9.0, **EACH}),
    "gemma3 biases": ("Gemma3", {"sliding_window_pattern": 2, "attention_bias": True, "head_dim": 24}),
    "gemma4": ("Gemma4", {**SHARED, "num_hidden_layers": 5, "layer_types": [S, F, S, S, F]}),
    "gemma4 by token": ("Gemma4", {**FOUR, **BY_TOKEN, "vocab_size_per_layer_input": 112}),
    "gemma4 shared late": ("Gemma4", {**SHARED, "layer_types": [F, S, F, F], "num_kv_shared_layers": 1}),
    "gemma4 made": ("Gemma4", MADE),
    "gemma4 mixture": ("Gemma4", {**MADE, **EXPERTS, "num_hidden_layers": 3, "layer_types": [S, F, F]}),
    "gemma4 mixture of all": ("Gemma4", {**SHARED, **EXPERTS, "top_k_experts": 8}),
    "unified": ("Gemma4Unified", MADE | {"hidden_size_per_layer_input": None}),
    "unified half": ("Gemma4Unified", {"global_head_dim": 24, "rope_parameters": {F: HALF, **LOCAL}}),
    "unified shared": ("Gemma4Unified", {**FOUR, "num_kv_shared_layers": 2, "attention_bias": True, "head_dim": 24}),
}  # fmt: skip


def build(name: str, seed: int = 0, **given: Any) -> Any:
    """A random model in float32, in which every tensor matters."""
    library, (kind, own) = peers.transformers(), SHAPES[name]
    fields = {n: x for n, x in {**SMALL, **own, **given}.items() if x is not None}
    config = getattr(library, f"{kind}TextConfig")(**fields)
    config._attn_implementation = "eager"
    model = getattr(library, f"{kind}ForCausalLM")(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for label, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not label.endswith(("inv_freq", "embed_scale")):
                tensor.copy_(_numbers(label, tensor, random, kind == "Gemma3"))
    model.tie_weights()
    return model


def _numbers(label: str, tensor: Tensor, random: torch.Generator, less_one: bool) -> Tensor:
    numbers = torch.randn(tensor.shape, generator=random)
    if tensor.ndim > 1 or label.endswith("bias"):
        return numbers / math.sqrt(tensor.shape[-1])
    mean = 1.5 if label == "model.norm.weight" else 1.0
    if label.endswith("q_norm.weight"):
        mean = 0.5  # sharp attention magnifies the rounding of angles
    return mean * (1 + 0.2 * numbers) - (float(less_one) if "norm" in label else 0.0)
