"""Checkpoints of Qwen3-Next, Qwen3.5 and 3.6, and their tensors as llama.cpp's converter arranges them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from checkpoints import DENSE, write
from gguf import MODEL_ARCH
from gguf_writer import add_fields
from hybrid_model import FULL, LINEAR, table
from torch import Tensor

TYPES = [LINEAR, LINEAR, FULL, LINEAR]
SMALL = DENSE | {"vocab_size": 96, "num_hidden_layers": 4, "layer_types": TYPES, "rms_norm_eps": 1e-6}
SMALL |= {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_conv_kernel_dim": 4}
SMALL |= {"linear_key_head_dim": 16, "linear_value_head_dim": 32, "mtp_num_hidden_layers": 1}
SMALL |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
del SMALL["rope_theta"]
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
MIXTURE |= {"shared_expert_intermediate_size": 32, "norm_topk_prob": True}
HYBRID: dict[str, dict[str, Any]] = {
    "qwen35": SMALL | {"architectures": ["Qwen3_5ForCausalLM"]},
    "qwen35moe": SMALL | MIXTURE | {"architectures": ["Qwen3_5MoeForCausalLM"]},
    "qwen3next": SMALL | MIXTURE | {"architectures": ["Qwen3NextForCausalLM"]},
}
DELTA = {
    "linear_conv_kernel_dim": "ssm_conv_kernel", "linear_key_head_dim": "ssm_state_size",
    "linear_num_key_heads": "ssm_group_count", "linear_num_value_heads": "ssm_time_step_rank",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}  # fmt: skip
DRAFTING = {
    "mtp.fc.weight": "eh_proj", "mtp.pre_fc_norm_embedding.weight": "enorm",
    "mtp.pre_fc_norm_hidden.weight": "hnorm", "mtp.norm.weight": "shared_head_norm",
}  # fmt: skip


def write_hybrid(folder: Path, name: str, seed: int = 0, **fields: Any) -> Path:
    """A checkpoint of an architecture of HYBRID, with a layer that drafts; see `hybrid_model.table`."""
    config = {k: v for k, v in {**HYBRID[name], **fields}.items() if v is not None}
    made = table(config, seed)
    for label in made.keys() & {"lm_head.weight", "model.embed_tokens.weight"}:
        made[label] /= 2  # log-probabilities spread still less
    return write(folder, config, made)


def converted(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], arch: MODEL_ARCH
) -> Iterator[tuple[str, Tensor]]:
    """Names that the library's map knows, or GGUF's own, with weights as files have them."""
    keys, layers = config["linear_num_key_heads"], config["num_hidden_layers"]
    width = config["linear_value_head_dim"]
    rest = dict(tensors)
    for name in tensors:
        if arch is MODEL_ARCH.QWEN3NEXT and name.endswith("in_proj_b.weight"):  # all of a key head together
            beside = rest.pop(other := name.replace("in_proj_b", "in_proj_a"))
            both = [side.unflatten(0, (keys, -1)) for side in (rest.pop(name), beside)]
            rest[other.replace("in_proj_a", "in_proj_ba")] = torch.cat(both, 1).flatten(0, 1)
    for name, weight in rest.items():
        if "norm" in name and "linear_attn" not in name:
            weight = weight + 1
        if "linear_attn" in name and arch is not MODEL_ARCH.QWEN3NEXT:
            weight = in_turn(name.split("linear_attn.")[1], weight, config, keys, width)
        if name.endswith("A_log"):
            weight = -weight.exp()
        name = re.sub(r"^mtp\.layers\.0\.", f"model.layers.{layers}.", name).replace(".dt_bias", ".dt_proj.bias")
        if name in DRAFTING:
            name = f"blk.{layers}.nextn.{DRAFTING[name]}.weight"
        yield name, weight.squeeze()


def in_turn(name: str, weight: Tensor, config: Mapping[str, Any], keys: int, width: int) -> Tensor:
    """Value heads in turn over the key heads, where a tensor has them."""

    def turned(part: Tensor, size: int) -> Tensor:
        return part.reshape(keys, -1, size, *part.shape[1:]).transpose(0, 1).reshape(part.shape)

    if name in ("in_proj_qkv.weight", "conv1d.weight"):
        first = 2 * keys * config["linear_key_head_dim"]
        return torch.cat((weight[:first], turned(weight[first:], width)))
    if name == "out_proj.weight":
        return turned(weight.T, width).T.contiguous()
    if name == "norm.weight":
        return weight
    return turned(weight, width if name == "in_proj_z.weight" else 1)


def add_hybrid(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Header keys that these architectures have beside the usual ones."""
    add_fields(writer, config, DELTA)
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(4)
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", [kind == LINEAR for kind in blocks(config)])
    if drafts := config.get("mtp_num_hidden_layers"):
        writer.add_nextn_predict_layers(drafts)


def blocks(config: Mapping[str, Any]) -> list[str]:
    """The types of all blocks, those that draft too."""
    return [*config["layer_types"]] + [FULL] * config.get("mtp_num_hidden_layers", 0)
