"""Tiny random checkpoints with logits that spread over several units, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers_tiny import write_bpe
from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import Layer
from fastslow.engine.model.tensors import mtp_shapes, tensor_shapes

DENSE: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
DENSE |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
DENSE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
DENSE |= {"max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-5}
DENSE |= {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
DENSE |= {"hidden_act": "silu", "torch_dtype": "float32"}
MOGE: dict[str, Any] = {
    **DENSE, "architectures": ["PanguProMoEForCausalLM"], "model_type": "PanguProMoE", "num_hidden_layers": 3,
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
}  # fmt: skip
ROTATED = {k: v for k, v in DENSE.items() if k != "architectures"} | {"num_hidden_layers": 4}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
LATE = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"truncate": False, "original_max_position_embeddings": 128}


def _family(name: str, **fields: Any) -> dict[str, Any]:
    return {**ROTATED, "architectures": [f"{name}ForCausalLM"], **fields}


FAMILIES = {  # one config of every family without groups, by a short name
    "llama": _family("Llama"),
    "mistral": _family("Mistral", sliding_window=7),
    "qwen2": _family("Qwen2", **LATE),
    "qwen3": _family("Qwen3", head_dim=24),
    "smollm3": _family("SmolLM3", no_rope_layer_interval=2, tie_word_embeddings=True),
    "qwen3_moe": _family("Qwen3Moe", **EXPERTS, norm_topk_prob=True, mlp_only_layers=[1]),
    "gpt_oss": _family(
        "GptOss", intermediate_size=32, num_local_experts=8, num_experts_per_tok=3, sliding_window=8, rope_scaling=YARN
    ),
}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of any config.json that is known, in its `torch_dtype`."""
    dtype = getattr(torch, config["torch_dtype"])
    table = random_table(ModelConfig.from_json(config), seed)
    return {name: tensor.to(dtype) for name, tensor in table.items()}


def stub(name: str, vocab: int, hidden: int, context: int, groups: int = 0) -> ModelConfig:
    """The config of a model that a test makes up: one layer with one KV head of `hidden` numbers."""
    expert = DenseMlp(1)
    ffn = RoutedExperts(GroupRouter(groups), groups, expert, expert) if groups else expert
    layer = Layer(GroupedAttention(1, 1, hidden, None), ffn)
    return ModelConfig(name, vocab, hidden, (layer,), context)


def random_table(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """In float32, by the engine's names, a layer that drafts too; every part matters."""
    random, table = torch.Generator().manual_seed(seed), {}
    for name, shape in (tensor_shapes(config) | mtp_shapes(config)).items():
        if name.endswith("router_scale"):
            table[name] = shape[-1] / 2 * (0.5 + torch.rand(shape, generator=random))
            continue
        numbers = torch.randn(shape, generator=random)
        if name.endswith("norm.weight"):
            numbers = 1 + 0.2 * numbers
        elif name.endswith("bias"):
            numbers *= 0.3
        elif "sink" not in name:
            outer = len(name.split(".")) < 4  # embedding and head
            gain = 3.0 if outer else 1.0 if "v_proj" in name else 1.5
            numbers *= gain * shape[-1] ** -0.5
        table[name] = numbers
    return table


def write_family(folder: Path, family: str, seed: int = 0, vocab: int = 96, **overrides: Any) -> Path:
    """A checkpoint of a family of FAMILIES; `overrides` are config.json fields (None removes one)."""
    return _write(folder, FAMILIES[family], seed, 1, {"vocab_size": vocab, **overrides})


def write_moge(folder: Path, seed: int = 0, sharded: bool = True, vocab: int = 96, **overrides: Any) -> Path:
    """A PanguProMoE checkpoint."""
    return _write(folder, MOGE, seed, 1 + sharded, {"vocab_size": vocab, **overrides})


def write_chat(folder: Path, template: str | None = None, presets: Any = None, **fields: Any) -> Path:
    """A PanguProMoE checkpoint of two layers with a tokenizer; `presets` are its fastslow.json."""
    vocab = write_bpe(folder, template)
    if presets is not None:
        (folder / "fastslow.json").write_text(json.dumps(presets), "utf-8")
    return write_moge(folder, **{"vocab": vocab, "num_hidden_layers": 2, "hidden_size": 32, **fields})


def write_dense(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    seed: int = 0,
    sharded: bool = False,
    vocab: int = 96,
    **overrides: Any,
) -> Path:
    """A Llama or PanguEmbedded checkpoint."""
    fields = {"architectures": [architecture], "vocab_size": vocab, **overrides}
    return _write(folder, DENSE, seed, 1 + sharded, fields)


def _write(folder: Path, base: dict[str, Any], seed: int, shards: int, fields: Any) -> Path:
    config = {name: value for name, value in {**base, **fields}.items() if value is not None}
    return write(folder, config, tensors(config, seed), shards)


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
