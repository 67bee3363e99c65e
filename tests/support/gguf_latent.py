"""What llama.cpp's converter does to tensors of latent attention, and what it says of them in a header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gguf
from gguf_writer import add_fields
from torch import Tensor

CLASSES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM")
SPARSE = "GlmMoeDsaForCausalLM"
RANKS = {
    "qk_rope_head_dim": "rope_dimension_count", "kv_lora_rank": "kv_lora_rank", "q_lora_rank": "q_lora_rank",
    "index_n_heads": "indexer_head_count", "index_head_dim": "indexer_key_length", "index_topk": "indexer_top_k",
}  # fmt: skip
NEXTN = {"shared_head.norm": "shared_head_norm", "shared_head.head": "shared_head_head"}
NEXTN |= {name: name for name in ("enorm", "hnorm", "eh_proj", "embed_tokens")}


def converted(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Keys and values of a latent apart, those of keys transposed; names of a layer that drafts."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    for name, tensor in tensors.items():
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        stem = rest.removesuffix(".weight") if number.isdecimal() else ""
        if stem == "self_attn.kv_b_proj" and not config.get("older"):
            keys, values = tensor.unflatten(0, (heads, -1)).split((nope, config["v_head_dim"]), 1)
            yield f"blk.{number}.attn_k_b.weight", keys.mT.contiguous()
            yield f"blk.{number}.attn_v_b.weight", values.contiguous()
        elif stem in NEXTN:
            yield f"blk.{number}.nextn.{NEXTN[stem]}.weight", tensor
        else:
            yield name, tensor


def add_latent(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Attention and routing. older: as files were before llama.cpp ran the absorbed form."""
    turning, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    key, value = config["qk_nope_head_dim"] + turning, config["v_head_dim"]
    older = config.get("older")
    writer.add_key_length(key if older else rank + turning)
    writer.add_value_length(value if older else rank)
    if not older:
        writer.kv_data[0][f"{writer.arch}.attention.head_count_kv"].value = 1
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    add_fields(writer, config, RANKS)
    if "types" in config:  # newer files say them
        writer.add_array(f"{writer.arch}.attention.indexer.types", config["types"])
    if "scoring_func" in config:
        kinds = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(kinds.SIGMOID if config["scoring_func"] == "sigmoid" else kinds.SOFTMAX)
    if of_all := (config.get("rope_scaling") or {}).get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * of_all)
