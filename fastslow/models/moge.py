from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from fastslow.models.dense import LINEARS, OFFICIAL, Dense
from fastslow.models.folder import fresh_folder, require_vacant
from fastslow.models.recipe import TEMPERATURE, Recipe

COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def moge_config(raw: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """config.json of the MoGE model.

    Args:
        raw: the dense model's config.json.
        recipe: gives the numbers of groups and experts and the widths.

    Returns:
        The keys of a PanguProMoEForCausalLM checkpoint; `num_experts_per_tok` is the number of
        groups, as in openPangu Pro MoE.
    """
    groups, experts, width = recipe.layout.experts.shape[1:]
    heads = raw["num_attention_heads"]
    config = {
        "architectures": ["PanguProMoEForCausalLM"],
        "model_type": "PanguProMoE",
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": raw.get("num_key_value_heads", heads),
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "max_position_embeddings": raw["max_position_embeddings"],
        "rope_theta": raw.get("rope_theta", 10000.0),
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-5),
        "hidden_act": "silu",
        "num_experts": groups * experts,
        "num_experts_per_tok": groups,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": recipe.layout.shared.shape[1],
        "mlp_only_layers": [],
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
    }
    ids = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in raw}
    return config | ids | {"torch_dtype": "bfloat16"}


def merged(dense: Dense, recipe: Recipe, layer: int) -> dict[str, Tensor]:
    """The layer's seven weights with their deltas, FFN neurons in the layout's order."""
    order = recipe.layout.order(layer)
    weights = {}
    for name in LINEARS:
        weight = dense.weight(layer, name)
        if name in ("gate", "up"):
            weight = weight[order]
        elif name == "down":
            weight = weight[:, order]
        if recipe.deltas:
            a, b = recipe.deltas[f"{layer}_{name}"]
            weight = (weight.float() + b @ a).to(weight.dtype)
        weights[name] = weight
    return weights


def layer_tensors(dense: Dense, recipe: Recipe, layer: int) -> Iterator[tuple[str, Tensor]]:
    """Yields one layer's tensors under their official names."""
    base = f"model.layers.{layer}"
    layout = recipe.layout
    weights = merged(dense, recipe, layer)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        kept = dense.tensors[f"{base}.{norm}.weight"]
        yield f"{base}.{norm}.weight", recipe.norms.get(f"{layer}_{norm}", kept)
    for name in "qkvo":
        yield f"{base}.{OFFICIAL[name]}.weight", weights[name]
        bias = dense.bias(layer, name)
        zeros = torch.zeros(weights[name].shape[0])
        yield f"{base}.{OFFICIAL[name]}.bias", zeros if bias is None else bias
    yield f"{base}.mlp.gate.weight", layout.router[layer].bfloat16().float() / TEMPERATURE
    yield f"{base}.mlp.router_scale", layout.scale[layer].view(1, -1)
    shared, pool = layout.shared.shape[1], layout.pools.shape[2]
    groups, experts, _ = layout.experts[layer].shape
    places = {"shared_expert": torch.arange(shared)}
    for group in range(groups):
        for expert in range(experts):
            places[f"experts.{group * experts + expert}"] = (
                shared + group * pool + layout.experts[layer, group, expert]
            )
    for owner, place in places.items():
        yield f"{base}.mlp.{owner}.gate_proj.weight", weights["gate"][place]
        yield f"{base}.mlp.{owner}.up_proj.weight", weights["up"][place]
        yield f"{base}.mlp.{owner}.down_proj.weight", weights["down"][:, place]


def write_moge(
    dense_folder: Path,
    recipe: Recipe,
    out: Path,
    *,
    fast: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes a MoGE checkpoint in the layout of openPangu Pro MoE.

    Args:
        dense_folder: the dense checkpoint that the recipe was made for.
        recipe: neurons, router, deltas and norms.
        out: folder to create; it appears only when complete.
        fast: groups that the preset "fast" runs; "deep" runs all.
        dtype: dtype of every tensor.

    Returns:
        `out`: config.json, model.safetensors, fastslow.json and the dense model's tokenizer files.

    Raises:
        ValueError: the recipe does not fit the dense model, or `out` is not vacant.
    """
    require_vacant(out)
    groups = recipe.layout.experts.shape[1]
    if not 0 <= fast <= groups:
        raise ValueError(f"fast must be 0 to {groups} groups, got {fast}")
    dense = Dense(dense_folder, torch.float32)
    recipe.check(dense.config)
    raw = json.loads((dense_folder / "config.json").read_text())
    tensors = {
        "model.embed_tokens.weight": dense.embedding,
        "model.norm.weight": recipe.norms.get("norm", dense.tensors["model.norm.weight"]),
    }
    if not dense.config.tied:
        tensors["lm_head.weight"] = dense.head
    with fresh_folder(out) as folder:
        for layer in track(range(dense.config.layers), "writing experts", transient=True):
            for name, tensor in layer_tensors(dense, recipe, layer):
                tensors[name] = tensor.to(dtype).contiguous()
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = moge_config(raw, recipe)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        modes = {
            "fast": {
                "groups": fast,
                "description": f"Shared expert and the {fast} strongest of {groups} groups.",
            },
            "deep": {"groups": None, "description": f"All {groups} groups: the whole model."},
        }
        (folder / "fastslow.json").write_text(json.dumps({"modes": modes}, indent=2) + "\n")
        for name in COPIED:
            if (dense_folder / name).is_file():
                shutil.copyfile(dense_folder / name, folder / name)
    return out
