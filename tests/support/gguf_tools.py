"""Writes GGUF files as llama.cpp's converter does, from tensors and a config.json under Hugging Face's names.

Names of tensors and header keys are those of the `gguf` library.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import gguf_hybrid
import gguf_latent
import numpy as np
import torch
from gguf import MODEL_ARCH
from gguf_writer import Change, Pick, add_fields, f32, finish, joined
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

ARCHES = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA, "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3, "Qwen3MoeForCausalLM": MODEL_ARCH.QWEN3MOE,
    "SmolLM3ForCausalLM": MODEL_ARCH.SMOLLM3, "GptOssForCausalLM": MODEL_ARCH.GPT_OSS,
    "Qwen3_5ForCausalLM": MODEL_ARCH.QWEN35, "Qwen3_5MoeForCausalLM": MODEL_ARCH.QWEN35MOE,
    "Qwen3NextForCausalLM": MODEL_ARCH.QWEN3NEXT, "Lfm2ForCausalLM": MODEL_ARCH.LFM2,
    "Lfm2MoeForCausalLM": MODEL_ARCH.LFM2MOE, "Glm4MoeForCausalLM": MODEL_ARCH.GLM4_MOE,
    "Ernie4_5_MoeForCausalLM": MODEL_ARCH.ERNIE4_5_MOE, "MiniMaxM2ForCausalLM": MODEL_ARCH.MINIMAXM2,
    "GraniteMoeForCausalLM": MODEL_ARCH.GRANITE_MOE, "GraniteMoeSharedForCausalLM": MODEL_ARCH.GRANITE_MOE,
    "HunYuanMoEV1ForCausalLM": MODEL_ARCH.HUNYUAN_MOE, "Phi3ForCausalLM": MODEL_ARCH.PHI3,
    "GraniteForCausalLM": MODEL_ARCH.GRANITE, "Ernie4_5ForCausalLM": MODEL_ARCH.ERNIE4_5,
    "SeedOssForCausalLM": MODEL_ARCH.SEED_OSS, "HunYuanDenseV1ForCausalLM": MODEL_ARCH.HUNYUAN_DENSE,
    "Olmo2ForCausalLM": MODEL_ARCH.OLMO2, "Olmo3ForCausalLM": MODEL_ARCH.OLMO2,
    "Exaone4ForCausalLM": MODEL_ARCH.EXAONE4, "Ministral3ForCausalLM": MODEL_ARCH.MISTRAL3,
    **dict.fromkeys(gguf_latent.CLASSES, MODEL_ARCH.DEEPSEEK2), gguf_latent.SPARSE: MODEL_ARCH.GLM_DSA,
}  # fmt: skip
SOFTMAX, SIGMOID = gguf.ExpertGatingFuncType.SOFTMAX, gguf.ExpertGatingFuncType.SIGMOID
GATES: dict[MODEL_ARCH, gguf.ExpertGatingFuncType | None] = {
    MODEL_ARCH.GLM4_MOE: SIGMOID,
    MODEL_ARCH.MINIMAXM2: SIGMOID,
    MODEL_ARCH.ERNIE4_5_MOE: SOFTMAX,
}
GATES |= dict.fromkeys((MODEL_ARCH.GRANITE_MOE, MODEL_ARCH.HUNYUAN_MOE, MODEL_ARCH.GRANITE))
LATENT = MODEL_ARCH.DEEPSEEK2, MODEL_ARCH.GLM_DSA
GATES |= dict.fromkeys(LATENT)  # not said, or none
USUAL = {  # fields of config.json, and what writes them
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "vocab_size": "vocab_size",
    "num_attention_heads": "head_count", "intermediate_size": "feed_forward_length",
    "conv_L_cache": "shortconv_l_cache",
}  # fmt: skip
MIXTURE = {  # of their config.json, and what writes it
    "n_routed_experts": "expert_count", "moe_num_experts": "expert_count", "moe_k": "expert_used_count",
    "moe_topk": "expert_used_count", "num_shared_expert": "expert_shared_count",
    "n_shared_experts": "expert_shared_count", "moe_num_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count", "moe_layer_start_index": "leading_dense_block_count",
    "moe_layer_interval": "interleave_moe_layer_step", "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm", "n_group": "expert_group_count", "topk_group": "expert_group_used_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "attention_multiplier": "attention_scale", "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    "shared_intermediate_size": "expert_shared_feed_forward_length", "rotary_dim": "rope_dimension_count",
}  # fmt: skip
HYBRID = (MODEL_ARCH.QWEN35, MODEL_ARCH.QWEN35MOE, MODEL_ARCH.QWEN3NEXT)
INTERLEAVED = (MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3, MODEL_ARCH.GRANITE_MOE, MODEL_ARCH.GRANITE, MODEL_ARCH.MISTRAL3)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTE_TOKENS = [*MARKS, *sorted(ByteLevel.alphabet()), "he", "Ġt"]


def write_gguf(
    folder: Path,
    path: Path,
    pick: Pick = f32,
    change: Change | None = None,
    parts: int = 1,
    keep: Callable[[str], bool] = lambda name: True,
    rounded: Pick = f32,
) -> Path:
    """The checkpoint in a folder as a GGUF file, or as several (`path` is the first's). pick: the type of each
    tensor, by its GGUF name and shape. change: adds to the header, such as a tokenizer. keep: names that are written.
    rounded: types that weights are taken to before they are written."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHES[config["architectures"][0]]
    whole = arranged(load_file(folder / "model.safetensors"), config, arch)
    every = [(name, values) for name, values in whole.items() if keep(name)]
    for n in range(parts):
        writer = gguf.GGUFWriter(part_path(path, n, parts), gguf.MODEL_ARCH_NAMES[arch])
        if not n:
            add_header(writer, config, arch)
            if change is not None:
                change(writer)
        if parts > 1:
            writer.add_uint16("split.no", n)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(every))
        finish(writer, every[n::parts], pick, rounded)
    return part_path(path, 0, parts)


def write_apart(folder: Path, path: Path, pick: Pick = f32, change: Change = lambda writer: None) -> tuple[Path, Path]:
    """A model's file without its layer for multi-token prediction, and that layer's file beside it."""
    config = json.loads((folder / "config.json").read_text())
    arch = gguf.MODEL_ARCH_NAMES[ARCHES[config["architectures"][0]]]
    own = f"blk.{config['num_hidden_layers']}."

    def without(writer: gguf.GGUFWriter) -> None:
        change(writer)
        for key, value in (("nextn_predict_layers", None), ("block_count", config["num_hidden_layers"])):
            setting(f"{arch}.{key}", value)(writer)

    file = write_gguf(folder, path, pick, without, keep=lambda name: not name.startswith(own))
    beside = path.with_name(f"mtp-{path.name}")
    return file, write_gguf(folder, beside, pick, keep=lambda name: not name.startswith("blk.") or own in name)


def part_path(path: Path, n: int, parts: int) -> Path:
    return path if parts == 1 else path.with_name(f"{path.stem}-{n + 1:05}-of-{parts:05}.gguf")


def arranged(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], arch: MODEL_ARCH
) -> dict[str, NDArray[np.float32]]:
    """float32 arrays by GGUF name: experts joined, rows of q and k interleaved where the family's are."""
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"] + 1)
    if arch in LATENT:
        tensors = dict(gguf_latent.converted(tensors, config))
    if arch in HYBRID:
        tensors = dict(gguf_hybrid.converted(tensors, config, arch))
    if arch is MODEL_ARCH.PHI3:
        gates = {n.replace(".gate_proj.", ".up_proj."): x for n, x in tensors.items() if ".gate_proj." in n}
        kept = {n: x for n, x in tensors.items() if ".gate_proj." not in n}
        tensors = {n: torch.cat((gates[n], x)) if n in gates else x for n, x in kept.items()}
    found: dict[str, NDArray[np.float32]] = {}
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, tensor in joined(tensors):
        values = tensor.float().numpy()
        if name.endswith(".conv.conv.weight"):
            values = values[:, 0]
        if arch in INTERLEAVED and (side := re.search(r"self_attn\.([qk])_proj", name)):
            values = values.reshape(heads[side[1]], 2, -1, *values.shape[1:]).swapaxes(1, 2)
            values = np.ascontiguousarray(values).reshape(tensor.shape)
        found[_named(names, name, arch)] = values
    return found


def _named(names: gguf.TensorNameMap, name: str, arch: MODEL_ARCH) -> str:
    if name.startswith("blk."):
        return name
    if arch is MODEL_ARCH.GPT_OSS:
        name = name.replace(".mlp.gate.", ".mlp.router.")
    name = name.replace("e_score_correction_", "e_score_correction.")
    if arch in (MODEL_ARCH.LFM2, MODEL_ARCH.LFM2MOE):
        name = name.replace("model.norm.", "model.embedding_norm.")
    if name.endswith(".sinks"):
        name += ".weight"
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def add_header(writer: gguf.GGUFWriter, config: Mapping[str, Any], arch: MODEL_ARCH) -> None:
    drafts = config.get("mtp_num_hidden_layers", 0) + config.get("num_nextn_predict_layers", 0)
    writer.add_block_count(config["num_hidden_layers"] + drafts)
    add_fields(writer, config, USUAL)
    kinds, heads = config.get("layer_types") or [], config["num_key_value_heads"]
    writer.add_head_count_kv([heads * (kind != "conv") for kind in kinds] if "conv" in kinds else heads)
    rope = config.get("rope_parameters", config)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or config["norm_eps"])
    if arch not in LATENT:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(int(config["head_dim"] * rope.get("partial_rotary_factor", 1)))
    writer.add_file_type(7)
    writer.add_quantization_version(2)
    if arch in LATENT:
        gguf_latent.add_latent(writer, config)
    if arch in HYBRID:
        gguf_hybrid.add_hybrid(writer, config)
    if "num_dense_layers" in config:
        writer.add_leading_dense_block_count(config["num_dense_layers"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config.get("routed_scaling_factor", 1.0))
    if arch in GATES:
        add_fields(writer, config, MIXTURE)
        if (gate := GATES[arch]) is not None:
            writer.add_expert_gating_func(gate)
    if {"num_experts_per_tok", "moe_k", "moe_topk"} & config.keys():
        if (experts := config.get("num_experts") or config.get("num_local_experts")) is not None:
            writer.add_expert_count(experts)
        if "num_experts_per_tok" in config:
            writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config.get("moe_intermediate_size", config["intermediate_size"]))
    if arch in (MODEL_ARCH.PHI3, MODEL_ARCH.OLMO2, MODEL_ARCH.EXAONE4):
        add_near(writer, config, arch)
    if arch is MODEL_ARCH.GPT_OSS:
        writer.add_sliding_window(config["sliding_window"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("yarn", "linear"):
        kind = gguf.RopeScalingType.YARN if scaling["rope_type"] == "yarn" else "linear"
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "llama_4_scaling_beta" in scaling:
            writer.add_rope_scaling_yarn_log_mul(scaling["mscale_all_dim"])
            writer.add_attn_temperature_scale(scaling["llama_4_scaling_beta"])
    if "alpha" in scaling:  # the base is stretched
        dim = config["head_dim"]
        writer.kv_data[0].pop(f"{writer.arch}.rope.freq_base")
        writer.add_rope_freq_base(rope["rope_theta"] * scaling["alpha"] ** (dim / (dim - 2)))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(config["max_position_embeddings"])


def add_near(writer: gguf.GGUFWriter, config: Mapping[str, Any], arch: MODEL_ARCH) -> None:
    """Windows of layers; of Phi-3 the two lists of factors, and a window that is none."""
    window, scaling = config.get("sliding_window"), config.get("rope_scaling") or {}
    if arch is MODEL_ARCH.PHI3:
        window = window or 0
        writer.add_rope_scaling_orig_ctx_len(config.get("original_max_position_embeddings", 4096))
        for length in ("long", "short"):
            if (factors := scaling.get(f"{length}_factor")) is not None:
                writer.add_tensor(f"rope_factors_{length}.weight", np.array(factors, np.float32))
    elif window is not None:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if window is not None:
        writer.add_sliding_window(window)
    if "attention_factor" in scaling:
        name = "attn" if arch is MODEL_ARCH.PHI3 else "yarn_attn"
        writer.add_float32(f"{writer.arch}.rope.scaling.{name}_factor", scaling["attention_factor"])


def setting(key: str, value: Any) -> Change:
    """Gives a header key another value; None: it has none."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        kinds = {list: gguf.GGUFValueType.ARRAY, bool: gguf.GGUFValueType.BOOL}
        kind = kinds.get(type(value), gguf.GGUFValueType.UINT32)
        if value is not None:
            writer.add_key_value(key, value, kind)

    return change


def add_byte_level(writer: gguf.GGUFWriter, template: str, pre: str = "smollm") -> None:
    """A byte-level tokenizer of BYTE_TOKENS, and a chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(BYTE_TOKENS)
    writer.add_token_types([3] * len(MARKS) + [1] * (len(BYTE_TOKENS) - len(MARKS)))
    writer.add_token_merges(["h e", "Ġ t"])
    add_marks(writer, template)


def add_marks(writer: gguf.GGUFWriter, template: str) -> None:
    """A chat template, and where a text begins and ends."""
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
