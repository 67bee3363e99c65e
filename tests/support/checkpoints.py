"""Tiny random checkpoints with logits that spread over several units, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes

MOGE: dict[str, Any] = {
    "architectures": ["PanguProMoEForCausalLM"],
    "model_type": "PanguProMoE",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
DENSE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
ROTATED = {k: v for k, v in DENSE.items() if k != "architectures"} | {"num_hidden_layers": 4}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
FAMILIES: dict[
    str, dict[str, Any]
] = {  # one config of every family without groups, by a short name
    "llama": {**ROTATED, "architectures": ["LlamaForCausalLM"]},
    "mistral": {**ROTATED, "architectures": ["MistralForCausalLM"], "sliding_window": 7},
    "qwen2": {
        **ROTATED,
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 2,
    },
    "qwen3": {**ROTATED, "architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "smollm3": {
        **ROTATED,
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        **ROTATED,
        **EXPERTS,
        "architectures": ["Qwen3MoeForCausalLM"],
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "gpt_oss": {
        **ROTATED,
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 8,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 128,
        },
    },
}


def write_family(
    folder: Path, family: str, seed: int = 0, vocab: int = 96, **overrides: Any
) -> Path:
    """A checkpoint of a family of FAMILIES; `overrides` are config.json fields (None removes one)."""
    config = _config(FAMILIES[family], vocab, overrides)
    return write(folder, config, random_tensors(config, seed))


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of any config.json that is known."""
    table = random_table(ModelConfig.from_json(config), seed)
    return {
        name: tensor.to(getattr(torch, config["torch_dtype"])) for name, tensor in table.items()
    }


def random_table(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """The same in float32, by the names of `tensor_shapes`; every part matters."""
    random, table = torch.Generator().manual_seed(seed), {}
    for name, shape in tensor_shapes(config).items():
        numbers = torch.randn(shape, generator=random)
        if name.endswith("norm.weight"):
            numbers = 1 + 0.2 * numbers
        elif name.endswith(".bias"):
            numbers *= 0.3
        elif not name.endswith(".sinks"):
            gain = 3.0 if len(name.split(".")) < 4 else 1.5  # embedding and head
            numbers *= gain * shape[-1] ** -0.5
        table[name] = numbers
    return table


def write_moge(
    folder: Path, seed: int = 0, sharded: bool = True, vocab: int = 96, **overrides: Any
) -> Path:
    """A PanguProMoE checkpoint; `overrides` are config.json fields (None removes one)."""
    config = _config(MOGE, vocab, overrides)
    return write(folder, config, tensors(config, seed), shards=2 if sharded else 1)


def write_dense(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    seed: int = 0,
    sharded: bool = False,
    vocab: int = 96,
    **overrides: Any,
) -> Path:
    """A Llama or PanguEmbedded checkpoint; `overrides` are config.json fields (None removes)."""
    config = _config(DENSE, vocab, {"architectures": [architecture], **overrides})
    return write(folder, config, tensors(config, seed), shards=2 if sharded else 1)


def _config(base: dict[str, Any], vocab: int, overrides: dict[str, Any]) -> dict[str, Any]:
    merged = {**base, "vocab_size": vocab, **overrides}
    return {name: value for name, value in merged.items() if value is not None}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a config, in its `torch_dtype`."""
    random = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    hidden, dim = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    architecture = config["architectures"][0]
    moge = architecture == "PanguProMoEForCausalLM"
    llama = architecture == "LlamaForCausalLM"
    attention_bias = config.get("attention_bias", False) if llama else config.get("bias", True)
    table: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, std: float) -> None:
        table[name] = (torch.randn(shape, generator=random) * std).to(dtype)

    def linear(name: str, rows: int, columns: int, bias: bool = False, gain: float = 1.0) -> None:
        normal(f"{name}.weight", rows, columns, std=gain * columns**-0.5)
        if bias:
            normal(f"{name}.bias", rows, std=0.3)

    def norm(name: str) -> None:
        table[f"{name}.weight"] = (1 + 0.2 * torch.randn(hidden, generator=random)).to(dtype)

    def mlp(name: str, inner: int, bias: bool = False) -> None:
        linear(f"{name}.gate_proj", inner, hidden, bias, gain=1.5)
        linear(f"{name}.up_proj", inner, hidden, bias, gain=1.5)
        linear(f"{name}.down_proj", hidden, inner, bias, gain=1.5)

    normal("model.embed_tokens.weight", config["vocab_size"], hidden, std=3 * hidden**-0.5)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.self_attn.q_proj", queries, hidden, attention_bias, gain=1.5)
        linear(f"{layer}.self_attn.k_proj", keys, hidden, attention_bias, gain=1.5)
        linear(f"{layer}.self_attn.v_proj", keys, hidden, attention_bias)
        linear(f"{layer}.self_attn.o_proj", hidden, queries, attention_bias, gain=1.5)
        norm(f"{layer}.post_attention_layernorm")
        if moge and n not in config.get("mlp_only_layers", ()):
            experts = config["num_experts"]
            linear(f"{layer}.mlp.gate", experts, hidden, gain=1.5)
            scale = experts / 2 * (0.5 + torch.rand(1, experts, generator=random))
            table[f"{layer}.mlp.router_scale"] = scale.to(dtype)
            mlp(f"{layer}.mlp.shared_expert", config["shared_expert_intermediate_size"])
            for e in range(experts):
                mlp(f"{layer}.mlp.experts.{e}", config["moe_intermediate_size"])
        else:
            mlp(
                f"{layer}.mlp", config["intermediate_size"], llama and config.get("mlp_bias", False)
            )
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], hidden, gain=3.0)
    return table


def write(folder: Path, config: dict[str, Any], table: dict[str, Tensor], shards: int = 1) -> Path:
    """config.json and the tensors, in one file or in `shards` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if shards == 1:
        save_file(table, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    names = list(table)
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: table[name] for name in names[i::shards]}
        save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    size = sum(t.numel() * t.element_size() for t in table.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
