"""The recipe of a MoGE model: what is written by it, and the one that is shipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints import write_dense
from gguf_tools import BYTE_TOKENS, add_byte_level, write_gguf
from safetensors.torch import load_file, save_file

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import tensor_shapes
from fastslow.models.dense import LINEARS, OFFICIAL, Dense
from fastslow.models.locate import RECIPE
from fastslow.models.moge import write_moge
from fastslow.models.recipe import NORMS, NUMBERS, TEMPERATURE, ExpertLayout, Recipe

LAYERS, HIDDEN, INNER = 2, 64, 96
GROUPS, EXPERTS, SHARED, WIDTH = 4, 4, 56, 8


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dense(tmp_path_factory.mktemp("dense"), vocab=len(BYTE_TOKENS), tie_word_embeddings=True)
    vocabulary = partial(add_byte_level, template="{{ messages[0]['content'] }}")
    return write_gguf(folder, folder / "dense.gguf", change=vocabulary)


@pytest.fixture(scope="module")
def recipe(gguf: Path) -> Recipe:
    """A recipe whose deltas and norms all differ from the dense model's."""
    torch.manual_seed(1)
    orders = torch.stack([torch.randperm(INNER) for _ in range(LAYERS)])
    pool = (INNER - SHARED) // GROUPS
    experts = [torch.randperm(pool)[:WIDTH].sort().values for _ in range(LAYERS * GROUPS * EXPERTS)]
    layout = ExpertLayout(
        orders[:, :SHARED].sort().values, orders[:, SHARED:].view(LAYERS, GROUPS, pool),
        torch.stack(experts).view(LAYERS, GROUPS, EXPERTS, WIDTH), torch.randn(LAYERS, GROUPS * EXPERTS, HIDDEN),
        torch.rand(LAYERS, GROUPS * EXPERTS),
    )  # fmt: skip
    dense = Dense(gguf)
    sizes = {f"{n}_{name}": dense.weight(n, name).shape for n in range(LAYERS) for name in LINEARS}
    deltas = {n: (torch.randn(3, i), torch.randn(o, 3)) for n, (o, i) in sizes.items()}
    norms = [f"{n}_{name}" for n in range(LAYERS) for name in NORMS]
    return Recipe(layout, deltas, {name: torch.randn(HIDDEN) for name in (*norms, "norm")})


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """As the shipped file is written: bfloat16 values and uint16 neuron numbers."""
    kinds = {name: torch.uint16 if name in NUMBERS else torch.bfloat16 for name in vars(recipe.layout)}
    tensors = {name: tensor.to(kinds[name]) for name, tensor in vars(recipe.layout).items()}
    for name, pair in recipe.deltas.items():
        tensors |= {f"delta.{name}.{x}": tensor.bfloat16() for x, tensor in zip("ab", pair)}
    tensors |= {f"norm.{name}": tensor.bfloat16() for name, tensor in recipe.norms.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_each_expert_has_its_neurons_with_their_deltas(gguf: Path, recipe: Recipe, tmp_path: Path) -> None:
    write_moge(gguf, recipe, out := tmp_path / "moge")
    assert [path.name for path in tmp_path.iterdir()] == ["moge"], "no temporary folder stays"
    assert {path.name for path in out.iterdir()} > {"fastslow.json", "tokenizer.json", "chat_template.jinja"}
    tensors, dense = load_file(out / "model.safetensors"), Dense(gguf)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == tensor_shapes(ModelConfig.from_folder(out))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for n in range(LAYERS):
        layout, mlp = recipe.layout, f"model.layers.{n}.mlp."
        order = layout.order(n)
        owners = {"shared_expert": layout.shared[n]}
        for number, positions in enumerate(layout.experts[n].flatten(0, 1)):
            owners[f"experts.{number}"] = layout.pools[n][number // EXPERTS][positions]
        for name in LINEARS:
            a, b = recipe.deltas[f"{n}_{name}"]
            weight, delta = dense.weight(n, name), b @ a
            if name in "qkvo":
                own = tensors[f"model.layers.{n}.{OFFICIAL[name]}.weight"]
                assert torch.equal(own, (weight + delta).bfloat16())
                continue
            for owner, neurons in owners.items():  # numbers of the dense model's neurons
                places = torch.stack([(order == neuron).nonzero()[0, 0] for neuron in neurons])
                dim = int(name == "down")
                wanted = weight.index_select(dim, neurons) + delta.index_select(dim, places)
                assert torch.equal(tensors[f"{mlp}{owner}.{name}_proj.weight"], wanted.bfloat16())
        router = layout.router[n].bfloat16().float() / TEMPERATURE
        assert torch.equal(tensors[f"{mlp}gate.weight"], router.bfloat16())
        assert torch.equal(tensors[f"{mlp}router_scale"], layout.scale[n].view(1, -1).bfloat16())
        norm = tensors[f"model.layers.{n}.input_layernorm.weight"]
        assert torch.equal(norm, recipe.norms[f"{n}_input_layernorm"].bfloat16())
    assert torch.equal(tensors["model.norm.weight"], recipe.norms["norm"].bfloat16())


def test_a_recipe_is_read_as_it_was_written(recipe: Recipe, tmp_path: Path) -> None:
    loaded = Recipe.load(write_recipe(recipe, tmp_path / "recipe.safetensors"))
    assert torch.equal(loaded.layout.experts, recipe.layout.experts)
    assert loaded.deltas.keys() == recipe.deltas.keys()
    torch.testing.assert_close(loaded.norms, recipe.norms, rtol=0.01, atol=0.01)


def test_the_shipped_recipe() -> None:
    assert RECIPE.stat().st_size < 16 * 2**20
    layout = Recipe.load(RECIPE).layout
    assert layout.shared.shape == (30, 1088)
    assert layout.experts.shape == (30, 8, 8, 48)
