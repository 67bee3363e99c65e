"""A dense Llama in a GGUF file and a recipe become a MoGE checkpoint in the layout of openPangu Pro MoE."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastslow.engine.families.pangu import MOGE
from fastslow.engine.host.files import read_object
from fastslow.engine.host.progress import bar
from fastslow.models.dense import LINEARS, OFFICIAL, WORKERS, Dense
from fastslow.models.folder import fresh_folder, write_json
from fastslow.models.gguf import write_files
from fastslow.models.recipe import NORMS, TEMPERATURE, Recipe

FAST_GROUPS = 4  # that the preset "fast" runs; "deep" runs all
DENSE_ONLY = ("rope_scaling", "attention_bias", "mlp_bias")  # of its config.json


def moge_config(dense: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """config.json of the MoGE model: the keys of a PanguProMoEForCausalLM checkpoint, where
    `num_experts_per_tok` is the number of groups. dense: the dense model's config.json."""
    groups, experts, width = recipe.layout.experts.shape[1:]
    return {name: value for name, value in dense.items() if name not in DENSE_ONLY} | {
        "architectures": [*MOGE.architectures],
        "model_type": "PanguProMoE",
        "num_experts": groups * experts,
        "num_experts_per_tok": groups,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": recipe.layout.shared.shape[1],
        "mlp_only_layers": [],
    }


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
        a, b = recipe.deltas[f"{layer}_{name}"]
        weights[name] = (weight.float() + b @ a).bfloat16()
    return weights


def layer_tensors(dense: Dense, recipe: Recipe, layer: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's tensors with their official names, matrices in bfloat16."""
    base = f"model.layers.{layer}"
    layout = recipe.layout
    weights = merged(dense, recipe, layer)
    for norm in NORMS:
        yield f"{base}.{norm}.weight", recipe.norms[f"{layer}_{norm}"]
    for name in "qkvo":
        yield f"{base}.{OFFICIAL[name]}.weight", weights[name]
        yield f"{base}.{OFFICIAL[name]}.bias", torch.zeros(len(weights[name]))
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


def write_moge(gguf: Path, recipe: Recipe, out: Path) -> None:
    """Write the MoGE checkpoint of a tied model without biases, with its tokenizer's files. recipe: made for that
    model. out: folder to create; it appears only when complete."""
    dense, groups = Dense(gguf), recipe.layout.experts.shape[1]
    tensors = {
        "model.embed_tokens.weight": dense.tensors["model.embed_tokens.weight"],
        "model.norm.weight": recipe.norms["norm"],
    }
    strongest = f"Quicker: {FAST_GROUPS} of {groups} groups of experts."
    modes = {
        "fast": {"groups": FAST_GROUPS, "description": strongest},
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
        write_files(gguf, folder)
        config = folder / "config.json"
        write_json(config, moge_config(read_object(config), recipe))
        write_json(folder / "fastslow.json", {"modes": modes})
