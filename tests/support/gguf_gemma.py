"""GGUF files of Gemma 3 and 4 as llama.cpp's converter writes them, from a folder that transformers wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH
from gguf_writer import Change, Pick, add_fields, f32, finish
from numpy.typing import NDArray
from safetensors.torch import load_file

ARCHES = {"Gemma3ForCausalLM": MODEL_ARCH.GEMMA3, "Gemma4ForCausalLM": MODEL_ARCH.GEMMA4}
ARCHES |= {"Gemma4AssistantForCausalLM": MODEL_ARCH.GEMMA4}
FIELDS = {  # of config.json, and what writes them
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "sliding_window": "sliding_window",
    "num_attention_heads": "head_count", "rms_norm_eps": "layer_norm_rms_eps",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
EXPERTS = {"num_experts": "expert_count", "top_k_experts": "expert_used_count"}
EXPERTS |= {"moe_intermediate_size": "expert_feed_forward_length"}
FULL, STILL = "full_attention", 1e30


def write_gemma(
    folder: Path, path: Path, pick: Pick = f32, change: Change = lambda writer: None, rounded: Pick = f32
) -> Path:
    """pick, change, rounded: see `write_gguf`."""
    raw = json.loads((folder / "config.json").read_text())
    arch, config = ARCHES[raw["architectures"][0]], raw.get("text_config", raw)
    hidden = raw.get("backbone_hidden_size")  # of an assistant's target
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch] + "-assistant" * (hidden is not None))
    _add_header(writer, config, arch)
    if hidden is not None:
        writer.add_uint32("gemma4-assistant.embedding_length_out", hidden)
        writer.add_nextn_predict_layers(config["num_hidden_layers"])
    change(writer)
    table = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    if arch is MODEL_ARCH.GEMMA4:
        rope = config["rope_parameters"][FULL]
        pairs = _sizes(config)["global"] // 2
        turning = int(pairs * rope["partial_rotary_factor"])
        table["rope_freqs.weight"] = np.array([1.0] * turning + [STILL] * (pairs - turning), np.float32)
    named = list[tuple[str, NDArray[np.float32]]]()
    for name, values in table.items():
        if name.endswith("norm.weight") and arch is MODEL_ARCH.GEMMA3:
            values = values + 1
        if name.endswith("layer_scalar") or ".experts." in name:
            name += ".weight"
        for theirs, ours in (("router.scale", "ffn_gate_inp"), ("router.per_expert_scale", "ffn_down_exps")):
            if name.endswith(theirs):
                name = f"blk.{name.split('.')[2]}.{ours}.scale"
        own = (
            name
            if name.startswith(("blk.", "rope_freqs"))
            else f"nextn.{name}"
            if "_projection" in name[:15]
            else names.get_name(name, try_suffixes=(".weight", ".bias"))
        )
        assert own is not None, name
        named.append((own, values))
    finish(writer, named, pick, rounded)
    return path


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Of heads that see a window and of others, which a saved config says by layer."""
    own = config.get("per_layer_config", {}).get(str(config["layer_types"].index(FULL)), {})
    found = {"local": config["head_dim"], "global": own.get("head_dim", config["head_dim"])}
    return found | {"heads": own.get("num_key_value_heads", config["num_key_value_heads"])}


def _add_header(writer: gguf.GGUFWriter, config: Mapping[str, Any], arch: MODEL_ARCH) -> None:
    sizes, windows = _sizes(config), [kind != FULL for kind in config["layer_types"]]
    ropes, layers = config["rope_parameters"], config["num_hidden_layers"]
    writer.add_block_count(layers)
    add_fields(writer, config, FIELDS)
    writer.add_rope_freq_base(ropes[FULL]["rope_theta"])
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    writer.add_key_length(sizes["global"])
    writer.add_value_length(sizes["global"])
    if arch is MODEL_ARCH.GEMMA3:
        writer.add_head_count_kv(sizes["heads"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_sliding_window_pattern(windows)
        if ropes[FULL]["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(ropes[FULL]["factor"])
        return
    shared, width = config["num_kv_shared_layers"], config["intermediate_size"]
    wide = width * (1 + config["use_double_wide_mlp"])
    heads = [config["num_key_value_heads"] if windowed else sizes["heads"] for windowed in windows]
    writer.add_head_count_kv(heads if len({*heads}) > 1 else heads[0])
    writer.add_feed_forward_length([width] * (layers - shared) + [wide] * shared if wide > width else width)
    writer.add_sliding_window_pattern(windows)
    writer.add_key_length_swa(sizes["local"])
    writer.add_value_length_swa(sizes["local"])
    writer.add_rope_dimension_count(sizes["global"])
    writer.add_rope_dimension_count_swa(sizes["local"])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    if config["enable_moe_block"]:
        add_fields(writer, config, EXPERTS)
