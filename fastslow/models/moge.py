"""A dense checkpoint and a recipe become a MoGE checkpoint in the layout of openPangu Pro MoE."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.families.pangu import MOGE
from fastslow.engine.host.files import read_object
from fastslow.engine.host.progress import bar
from fastslow.engine.model.config import ModelConfig
from fastslow.models.dense import LINEARS, OFFICIAL, WORKERS, Dense
from fastslow.models.folder import fresh_folder, require_vacant, write_json
from fastslow.models.recipe import NORMS, TEMPERATURE, Recipe

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
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def moge_config(dense: ModelConfig, raw: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """config.json of the MoGE model: the keys of a PanguProMoEForCausalLM checkpoint, where
    `num_experts_per_tok` is the number of groups. `raw` is the dense model's config.json, which gives the
    ids of special tokens."""
    groups, experts, width = recipe.layout.experts.shape[1:]
    alike = AlikeLayers.of(dense)
    a = alike.attention
    config = {
        "architectures": [*MOGE.architectures],
        "model_type": "PanguProMoE",
        "vocab_size": dense.vocab_size,
        "hidden_size": dense.hidden_size,
        "intermediate_size": alike.widest,
        "num_hidden_layers": len(dense.layers),
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "max_position_embeddings": dense.max_positions,
        "rope_theta": alike.rope.theta,
        "rms_norm_eps": alike.eps,
        "hidden_act": "silu",
        "num_experts": groups * experts,
        "num_experts_per_tok": groups,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": recipe.layout.shared.shape[1],
        "mlp_only_layers": [],
        "tie_word_embeddings": dense.tie_word_embeddings,
    }
    return config | {k: raw[k] for k in TOKEN_IDS if k in raw} | {"torch_dtype": "bfloat16"}


def merged(dense: Dense, recipe: Recipe, layer: int) -> dict[str, Tensor]:
    """The layer's seven weights with their deltas, in bfloat16, FFN neurons in the layout's order."""
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
            weight = weight.float() + b @ a
        weights[name] = weight.bfloat16()
    return weights


def layer_tensors(dense: Dense, recipe: Recipe, layer: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's tensors with their official names, matrices in bfloat16."""
    base = f"model.layers.{layer}"
    layout = recipe.layout
    weights = merged(dense, recipe, layer)
    for norm in NORMS:
        old = dense.tensors[f"{base}.{norm}.weight"]
        yield f"{base}.{norm}.weight", recipe.norms.get(f"{layer}_{norm}", old)
    for name in "qkvo":
        yield f"{base}.{OFFICIAL[name]}.weight", weights[name]
        bias = dense.bias(layer, name)
        zeros = torch.zeros(weights[name].shape[0])
        yield f"{base}.{OFFICIAL[name]}.bias", zeros if bias is None else bias
    yield f"{base}.mlp.gate.weight", layout.router[layer].bfloat16().float() / TEMPERATURE
    yield f"{base}.mlp.router_scale", layout.scale[layer].view(1, -1)
    shared, pool = layout.shared.shape[1], layout.pools.shape[2]
    groups, experts, width = layout.experts[layer].shape
    starts = shared + pool * torch.arange(groups).view(-1, 1, 1)
    places = torch.cat((torch.arange(shared), (starts + layout.experts[layer]).flatten()))
    owners = ["shared_expert", *(f"experts.{n}" for n in range(groups * experts))]
    sizes = [shared, *[width] * (groups * experts)]
    for name in ("gate", "up", "down"):  # all experts at once: a call takes longer than its work
        dim = int(name == "down")
        every = weights[name].index_select(dim, places).split(sizes, dim)
        for owner, part in zip(owners, every, strict=True):
            yield f"{base}.mlp.{owner}.{name}_proj.weight", part


def write_moge(
    dense_folder: Path,
    recipe: Recipe,
    out: Path,
    *,
    fast: int = 2,
    weights: Path | None = None,
) -> Path:
    """Write a MoGE checkpoint of the dense one that the recipe was made for, with its tokenizer files. out: folder to
    create; it appears only when complete. fast: groups that the preset "fast" runs; "deep" runs all. weights:
    the GGUF file that the dense folder was made from, where the folder has none. ValueError: the recipe does not fit
    the dense model, or `out` is not vacant."""
    require_vacant(out)
    groups = recipe.layout.experts.shape[1]
    if not 0 <= fast <= groups:
        raise ValueError(f"fast must be 0 to {groups} groups, got {fast}")
    # what `gguf_to_dense` makes of the file is in bfloat16, too
    dense = Dense(dense_folder, torch.bfloat16 if weights else torch.float32, weights)
    recipe.check(dense.config)
    raw = read_object(dense_folder / "config.json")
    tensors = {
        "model.embed_tokens.weight": dense.embedding,
        "model.norm.weight": recipe.norms.get("norm", dense.tensors["model.norm.weight"]),
    }
    if not dense.config.tie_word_embeddings:
        tensors["lm_head.weight"] = dense.head
    strongest = f"Quicker: {fast} of {groups} groups of experts."
    modes = {
        "fast": {"groups": fast, "description": strongest},
        "deep": {"groups": None, "description": f"All {groups} groups: the whole model."},
    }
    with fresh_folder(out) as folder:

        def made(layer: int) -> list[tuple[str, Tensor]]:
            parts = layer_tensors(dense, recipe, layer)
            return [(name, tensor.bfloat16().contiguous()) for name, tensor in parts]

        pool = ThreadPoolExecutor(WORKERS)
        try:
            each = [pool.submit(made, layer) for layer in range(len(dense.config.layers))]
            for one in bar(each, "writing experts"):
                tensors.update(one.result())
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C waits for layers that run alone
        tensors = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", moge_config(dense.config, raw, recipe))
        write_json(folder / "fastslow.json", {"modes": modes})
        for name in COPIED:
            if (dense_folder / name).is_file():
                shutil.copyfile(dense_folder / name, folder / name)
    return out
