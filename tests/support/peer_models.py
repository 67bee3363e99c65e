"""Tiny random models made and run by transformers, whose answers ours are compared with."""

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
SMALL |= {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL |= {"max_position_embeddings": 512}
LATE = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 24}
NORMED, PLAIN = {**MOE, "norm_topk_prob": True}, {**MOE, "norm_topk_prob": False}
OSS = {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16, "sliding_window": 8}
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
LFM: dict[str, Any] = {"rms_norm_eps": None, "block_multiple_of": 16}
LFM_MOE = {**LFM, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "num_dense_layers": 1}
DELTA: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
DELTA |= {"linear_value_head_dim": 32, "head_dim": 32, "max_position_embeddings": 1024}
DELTA |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
DELTA_MOE = {**DELTA, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
DELTA_MOE |= {"shared_expert_intermediate_size": 48}
TIED, BIASED = {"tie_word_embeddings": True}, {"attention_bias": True}
STEP, UNTIED = {"decoder_sparse_step": 2}, {"tie_word_embeddings": False}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **fields}}


def yarn(factor: float, **fields: Any) -> dict[str, Any]:
    return rope("yarn", original_max_position_embeddings=64, factor=factor, **fields)


def conv_or_full(kinds: str) -> list[str]:
    """Types of layers by their first letters."""
    return [{"c": "conv", "f": "full_attention", "l": "linear_attention"}[kind] for kind in kinds]


def delta(base: dict[str, Any], kinds: str, keys: int, values: int, **fields: Any) -> dict[str, Any]:
    """Types of layers, and heads of gated delta nets."""
    heads = {"linear_num_key_heads": keys, "linear_num_value_heads": values}
    return {**base, "layer_types": conv_or_full(kinds), "num_hidden_layers": len(kinds), **heads, **fields}


SCALES = {"mscale": 0.9, "mscale_all_dim": 0.4, "beta_fast": 20.0, "beta_slow": 2.0}

# Class of transformers, and the fields of each shape; the first of a class runs by default.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}), "llama biases tied": ("Llama", {**BIASED, **TIED, "mlp_bias": True}),
    "llama linear": ("Llama", rope("linear", factor=3.0)), "llama yarn": ("Llama", yarn(8.0)),
    "llama yarn factor": ("Llama", yarn(4.0, attention_factor=0.7, truncate=False)),
    "llama yarn mscale": ("Llama", yarn(6.0, **SCALES)), "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral no window": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral window of one": ("Mistral", {"sliding_window": 1, **TIED}), "qwen2": ("Qwen2", LATE),
    "qwen2 tied": ("Qwen2", {"sliding_window": 9, **TIED}), "qwen2 types": ("Qwen2", {**LATE, "layer_types": TYPES}),
    "qwen2 yarn": ("Qwen2", yarn(4.0)), "qwen3": ("Qwen3", {"head_dim": 24, **TIED}),
    "qwen3 biases": ("Qwen3", {"head_dim": 16, **BIASED}), "qwen3 windows": ("Qwen3", {"head_dim": 32, **LATE}),
    "qwen3 yarn": ("Qwen3", {"head_dim": 16, **yarn(4.0)}), "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3 list": ("SmolLM3", {"no_rope_layers": [0, 1, 1, 0], **UNTIED, **BIASED}),
    "smollm3 windows": ("SmolLM3", {**LATE, "sliding_window": 6, "mlp_bias": True}),
    "qwen3_moe": ("Qwen3Moe", {**NORMED, "mlp_only_layers": [1]}), "qwen3_moe as they are": ("Qwen3Moe", PLAIN),
    "qwen3_moe step": ("Qwen3Moe", {**PLAIN, **STEP, **TIED}),
    "qwen3_moe step and list": ("Qwen3Moe", {**NORMED, **STEP, "mlp_only_layers": [3]}),
    "qwen3_moe windows": ("Qwen3Moe", {**MOE, **BIASED, **LATE, "max_window_layers": 0}), "gpt_oss": ("GptOss", OSS),
    "gpt_oss types": ("GptOss", {**OSS, **TIED, "layer_types": TYPES, "swiglu_limit": 1.5}),
    "gpt_oss one expert": ("GptOss", {**OSS, "num_experts_per_tok": 1, "attention_bias": False}),
    "gpt_oss plain rotary": ("GptOss", {**OSS, **rope("default")}),
    "lfm2": ("Lfm2", {**LFM, "layer_types": conv_or_full("ccfc")}),
    "lfm2 attention first": ("Lfm2", {**LFM, **UNTIED, "full_attn_idxs": [0, 3], "block_ffn_dim_multiplier": 1.3}),
    "lfm2 kernel of 7": ("Lfm2", {**LFM, "layer_types": conv_or_full("fccf"), "conv_L_cache": 7, "conv_bias": True}),
    "lfm2 kernel of 2": ("Lfm2", {**LFM, "layer_types": conv_or_full("cfcc"), "conv_L_cache": 2, **yarn(4.0)}),
    "lfm2 attention alone": ("Lfm2", {**LFM, "block_auto_adjust_ff_dim": False, "head_dim": 24}),
    "lfm2_moe": ("Lfm2Moe", {**LFM_MOE, "layer_types": conv_or_full("cfcc")}),
    "lfm2_moe attention first": ("Lfm2Moe", {**LFM_MOE, "layer_types": conv_or_full("fccf"), "num_dense_layers": 0}),
    "lfm2_moe as they are": (
        "Lfm2Moe", {**LFM_MOE, "layer_types": conv_or_full("cccf"), "norm_topk_prob": False, "conv_L_cache": 5}
    ),
    "lfm2_moe no bias": (
        "Lfm2Moe", {**LFM_MOE, **UNTIED, "layer_types": conv_or_full("ccfc"), "use_expert_bias": False}
    ),
    "lfm2_moe scaled": (
        "Lfm2Moe", {**LFM_MOE, "layer_types": conv_or_full("cffc"), "num_dense_layers": 3, "routed_scaling_factor": 2.5}
    ),
    "qwen3_5": ("Qwen3_5", delta(DELTA, "lllf", 2, 4)), "qwen3_5 tied": ("Qwen3_5", delta(DELTA, "llfl", 4, 4, **TIED)),
    "qwen3_5 attention first": ("Qwen3_5", delta(DELTA, "fllll", 1, 3)),
    "qwen3_5 narrow": ("Qwen3_5", delta(DELTA, "lfffl", 2, 6, linear_value_head_dim=16, **BIASED)),
    "qwen3_5 kernel of 2": ("Qwen3_5", delta(DELTA, "lfl", 2, 2, linear_conv_kernel_dim=2)),
    "qwen3_5_moe": ("Qwen3_5Moe", delta(DELTA_MOE, "fllf", 2, 6)),
    "qwen3_5_moe tied": ("Qwen3_5Moe", delta(DELTA_MOE, "lllfl", 2, 4, **TIED)),
    "qwen3_5_moe one expert": ("Qwen3_5Moe", delta(DELTA_MOE, "llfl", 4, 4, num_experts_per_tok=1)),
    "qwen3_5_moe all experts": ("Qwen3_5Moe", delta(DELTA_MOE, "lffl", 1, 2, num_experts_per_tok=8)),
    "qwen3_5_moe yarn": ("Qwen3_5Moe", delta(DELTA_MOE, "lllf", 2, 4, **yarn(4.0, partial_rotary_factor=0.25))),
    "qwen3_next": ("Qwen3Next", delta(DELTA_MOE, "lflf", 2, 4, mlp_only_layers=[1])),
    "qwen3_next tied": ("Qwen3Next", delta(DELTA_MOE, "lllf", 4, 4, **TIED)),
    "qwen3_next step": ("Qwen3Next", delta(DELTA_MOE, "flllf", 1, 3, **STEP)),
    "qwen3_next as they are": ("Qwen3Next", delta(DELTA_MOE, "llfl", 2, 6, norm_topk_prob=False)),
    "qwen3_next whole rotation": ("Qwen3Next", delta(DELTA_MOE, "ffl", 2, 2, **rope("default", partial_rotary_factor=1.0))),
}  # fmt: skip
GLM: dict[str, Any] = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 16}
ERNIE: dict[str, Any] = {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 32, "moe_layer_start_index": 0}
MINIMAX = {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 8, "intermediate_size": 32}
LATENT: dict[str, Any] = {"n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
LATENT |= {"num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 32, "first_k_dense_replace": 1}
LATENT |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_group": 1, "topk_group": 1}
GROUPS = {"n_group": 4, "topk_group": 2}
LIMITED = {**GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0}
INDEXED = {**LATENT, "index_n_heads": 2, "index_head_dim": 32, "index_topk": 2048}
CHOSEN = {"index_topk": 16, "index_n_heads": 16}
SAME_SCALES, NARROW = {"mscale": 0.7, "mscale_all_dim": 0.7}, {"q_lora_rank": None, "v_head_dim": 16}
KINDS = {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}
GRANITE_MOE = {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32, "attention_multiplier": 0.2}
GRANITE_MOE |= {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
HUNYUAN_MOE = {"num_experts": 8, "moe_topk": 4, "intermediate_size": 32, "head_dim": 16}

# Mixtures that tests/engine/model/test_mixtures.py runs over longer texts.
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "glm": ("Glm4Moe", {**GLM, **BIASED, "use_qk_norm": True, "routed_scaling_factor": 2.5}),
    "glm groups": ("Glm4Moe", {**GLM, **BIASED, "n_routed_experts": 16, "n_group": 4, "topk_group": 2}),
    "glm sparse": ("Glm4Moe", {**GLM, **TIED, "norm_topk_prob": False, "first_k_dense_replace": 0, "n_shared_experts": 2}),
    "ernie": ("Ernie4_5_Moe", {**ERNIE, "moe_layer_start_index": 1, "moe_layer_end_index": 2**31 - 1}),
    "ernie interval": ("Ernie4_5_Moe", {**ERNIE, **UNTIED, "moe_layer_interval": 2, "moe_num_shared_experts": 1}),
    "deepseek_v2": ("DeepseekV2", {**LATENT, **NARROW, **yarn(20.0, **SAME_SCALES)}),
    "deepseek_v2 groups": ("DeepseekV2", {**LATENT, **LIMITED, "first_k_dense_replace": 0}),
    "deepseek_v2 groups yarn": ("DeepseekV2", {**LATENT, **LIMITED, **TIED, **yarn(8.0, **SCALES)}),
    "deepseek_v3": ("DeepseekV3", {**LATENT, **GROUPS, **yarn(20.0, **SAME_SCALES)}),
    "deepseek_v3 as they are": ("DeepseekV3", {**LATENT, **NARROW, **GROUPS, "norm_topk_prob": False}),
    "deepseek_v3 halves": ("DeepseekV3", {**LATENT, **TIED, "rope_interleave": False, "n_shared_experts": 2}),
    "glm lite": ("Glm4MoeLite", {**LATENT, "routed_scaling_factor": 1.8}),
    "glm lite kinds": ("Glm4MoeLite", {**LATENT, **GROUPS, **KINDS, "qk_nope_head_dim": 32}),
    "glm lite no query latent": ("Glm4MoeLite", {**LATENT, **NARROW, **yarn(4.0)}),
    "deepseek_v32": ("DeepseekV32", {**INDEXED, **GROUPS}), "glm dsa": ("GlmMoeDsa", {**INDEXED, **KINDS}),
    "deepseek_v32 chosen": ("DeepseekV32", {**INDEXED, **CHOSEN, **yarn(20.0, **SAME_SCALES)}),
    "glm dsa chosen": ("GlmMoeDsa", {**INDEXED, **CHOSEN, "indexer_types": ["full", "full", "shared", "shared"]}),
    "ernie no shared": ("Ernie4_5_Moe", {**ERNIE, "moe_layer_end_index": 2, "moe_num_shared_experts": 0}),
    "granite moe": ("GraniteMoe", GRANITE_MOE), "granite moe biases": ("GraniteMoe", {**GRANITE_MOE, **BIASED, **TIED}),
    "granite moe all experts": ("GraniteMoe", {**GRANITE_MOE, "num_experts_per_tok": 8, "attention_multiplier": 0.5}),
    "granite shared": ("GraniteMoeShared", {**GRANITE_MOE, "shared_intermediate_size": 48}),
    "granite shared tied": ("GraniteMoeShared", {**GRANITE_MOE, **TIED, "shared_intermediate_size": 64}),
    "granite shared none": ("GraniteMoeShared", {**GRANITE_MOE, **BIASED, "num_experts_per_tok": 1}),
    "hunyuan moe": ("HunYuanMoEV1", HUNYUAN_MOE),
    "hunyuan moe alpha": ("HunYuanMoEV1", {**HUNYUAN_MOE, **TIED, **rope("dynamic", alpha=1000.0, factor=1.0)}),
    "hunyuan moe lists": ("HunYuanMoEV1", {**HUNYUAN_MOE, **BIASED, "moe_topk": [2] * 4}),
    "minimax": ("MiniMaxM2", MINIMAX), "minimax whole": ("MiniMaxM2", {**MINIMAX, "rotary_dim": None, **TIED}),
    "minimax one expert": ("MiniMaxM2", {**MINIMAX, "head_dim": 24, "rotary_dim": 8, "num_experts_per_tok": 1}),
}  # fmt: skip
ALPHA = {"alpha": 50.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [2.0 + 2.5 * i for i in range(6)]}
LONG = {"original_max_position_embeddings": 256, **rope("longrope", partial_rotary_factor=0.75, **FACTORS)}
SCALED = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.6, "attention_multiplier": 0.35}
HYBRID: dict[str, Any] = {**SCALED, "num_local_experts": 0, "shared_intermediate_size": 80, "mamba_n_heads": 4}
HYBRID |= {"layer_types": ["full_attention"] * 4, "num_experts_per_tok": 0, "mamba_expand": 2}
BETA = {"llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0}
BY_TYPE = {"full_attention": rope("linear", factor=2.0)["rope_parameters"], "sliding_attention": {"rope_theta": 5e3}}
WINDOW = {"sliding_window": 9}
SHARP = tuple(
    f"{name}.weight"
    for name in (
        "q_proj",
        "k_proj",
        "qkv_proj",
        "q_norm",
        "k_norm",
        "query_layernorm",
        "key_layernorm",
        "q_b_proj",
        "with_mqa",
    )
)

# Dense models near Llama that tests/engine/model/test_near_llamas.py runs over longer texts.
NEAR: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3", {"sliding_window": 70, **rope("default")}),
    "phi3 long": ("Phi3", LONG),
    "phi3 part": ("Phi3", {**TIED, **rope("default", partial_rotary_factor=0.5)}),
    "granite": ("Granite", {**SCALED, **TIED}), "granite biases": ("Granite", {**SCALED, **BIASED, "mlp_bias": True}),
    "granite yarn": ("Granite", {"attention_multiplier": 0.3, **yarn(4.0)}),
    "hybrid": ("GraniteMoeHybrid", {**HYBRID, "position_embedding_type": "rope"}),
    "hybrid still": ("GraniteMoeHybrid", HYBRID), "hybrid biases": ("GraniteMoeHybrid", {**HYBRID, **BIASED, **TIED}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 24}), "ernie4_5 biases": ("Ernie4_5", {**UNTIED, "use_bias": True}),
    "ernie4_5 null": ("Ernie4_5", {"head_dim": None}), "seed_oss": ("SeedOss", {"head_dim": 24}),
    "seed_oss biases": ("SeedOss", {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True, **TIED}),
    "seed_oss none": ("SeedOss", {"head_dim": 8, "attention_bias": False}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 24, **rope("dynamic", **ALPHA)}),
    "hunyuan plain": ("HunYuanDenseV1", {"head_dim": 16, **TIED}),
    "hunyuan biases": ("HunYuanDenseV1", {"head_dim": 16, **BIASED, **yarn(4.0)}),
    "olmo2": ("Olmo2", {}), "olmo2 biases": ("Olmo2", {**BIASED, **TIED}), "olmo2 yarn": ("Olmo2", yarn(4.0)),
    "olmo3": ("Olmo3", {**WINDOW, "rope_parameters": None, "rope_scaling": yarn(8.0)["rope_parameters"]}),
    "olmo3 types": ("Olmo3", {**WINDOW, "layer_types": TYPES, **BIASED}),
    "olmo3 rotations": ("Olmo3", {**WINDOW, "rope_parameters": BY_TYPE}),
    "exaone4": ("Exaone4", {**WINDOW, "sliding_window_pattern": 2}),
    "exaone4 whole": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4, **TIED}),
    "exaone4 types": ("Exaone4", {**WINDOW, "layer_types": TYPES, "sliding_window_pattern": "GL"}),
    "ministral3": ("Ministral3", {"head_dim": 24, **yarn(8.0, **BETA)}),
    "ministral3 usual": ("Ministral3", {"head_dim": 16, **TIED}),
    "ministral3 windows": ("Ministral3", {**WINDOW, "head_dim": 16, **yarn(2.0, **{**BETA, "mscale": 0.7})}),
    "mimo": ("Qwen2", {}),
}  # fmt: skip
FIRST = tuple({kind: name for name, (kind, _) in reversed((SHAPES | MIXTURES).items())}.values())


@cache
def transformers() -> Any:
    """The library, without a torchaudio that was built for a GPU and cannot be loaded here."""
    sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def build(name: str, seed: int = 0, **fields: Any) -> Any:
    """A random model of transformers, float32, whose logits spread over several units."""
    library, (kind, own) = transformers(), (SHAPES | MIXTURES | NEAR)[name]
    text = f"{kind}TextConfig" if kind.startswith("Qwen3_5") else f"{kind}Config"
    config = getattr(library, text)(**{**SMALL, **own, **fields})
    config._attn_implementation = "eager"
    model = getattr(library, f"{kind}ForCausalLM")(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for label, weight in model.named_parameters():
            weight.copy_(_numbers(label, weight, random))
            if name not in SHAPES and label.endswith(SHARP):
                weight *= 0.4  # sharp attention magnifies the rounding of angles
            if own.keys() >= DELTA.keys():  # norms less one; and less of all, since errors grow along a state
                weight *= 1 if weight.ndim == 1 else 0.4
                weight -= float(label.endswith("norm.weight") and "linear_attn" not in label)
        for label, bias in model.named_buffers():
            if label.endswith(("expert_bias", "correction_bias")):
                bias.copy_(_numbers(label, bias, random))
    model.tie_weights()
    return model


def _numbers(label: str, weight: Tensor, random: torch.Generator) -> Tensor:
    numbers = torch.randn(weight.shape, generator=random)
    if label.endswith("norm.weight"):
        return 1 + 0.2 * numbers
    if label.endswith("bias"):
        return 0.3 * numbers
    if label.endswith("sinks"):
        return numbers
    gain = 1.5 if ".layers." in label else 3.0
    return numbers * (gain / math.sqrt(weight.shape[-1]))


def logprobs(model: Any, tokens: list[int]) -> Tensor:
    """float64 [T, V]."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits.double().log_softmax(-1)


def write(folder: Path, model: Any) -> Path:
    """As transformers saves it."""
    model.save_pretrained(folder)
    return folder


def pack_experts(folder: Path, model: Any, seed: int = 0) -> None:
    """Give a gpt-oss model experts that MXFP4 can hold, and its folder these in MXFP4."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = torch.Generator().manual_seed(seed)
    packed: dict[str, Tensor] = {}
    for n, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        for stem in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, stem)
            count, inputs, outputs = weight.shape
            shape = (count, outputs, inputs // 32)
            blocks = torch.randint(256, (*shape, 16), generator=random, dtype=torch.uint8)
            scales = torch.randint(122, 125, shape, generator=random, dtype=torch.uint8)
            floats = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            weight.data.copy_(floats)
            name = f"model.layers.{n}.mlp.experts.{stem}"
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    file = folder / "model.safetensors"
    dropped = {name.removesuffix("_blocks") for name in packed}
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in dropped}
    save_file(kept | packed, file, {"format": "pt"})
