"""The recipe of a MoGE model: what is written by it, what of it is refused, and the one that is shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import write_dense
from safetensors.torch import load_file, save_file
from tokenizers_tiny import write_bpe

from fastslow.models.dense import LINEARS, OFFICIAL, Dense
from fastslow.models.locate import RECIPE
from fastslow.models.moge import write_moge
from fastslow.models.recipe import NUMBERS, TEMPERATURE, ExpertLayout, Recipe, norm_names
from fastslow.tools.convert import NeuronSplit, calibrate

GROUPS, EXPERTS, SHARED, WIDTH = 4, 4, 56, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dense")
    return write_dense(made, vocab=write_bpe(made))


@pytest.fixture(scope="module")
def dense(folder: Path) -> Dense:
    return Dense(folder, torch.float32)


@pytest.fixture(scope="module")
def recipe(dense: Dense) -> Recipe:
    """A recipe whose deltas and norms all differ from the dense model's."""
    random = torch.Generator().manual_seed(1)
    rows = torch.randint(0, dense.config.vocab_size, (4, 40), generator=random)
    layout = calibrate(dense, rows.tolist(), NeuronSplit(GROUPS, EXPERTS, SHARED, WIDTH))
    layers, hidden = len(dense.config.layers), dense.config.hidden_size
    sizes = {f"{n}_{name}": dense.weight(n, name).shape for n in range(layers) for name in LINEARS}
    deltas = {n: (torch.randn(3, i, generator=random), torch.randn(o, 3)) for n, (o, i) in sizes.items()}
    return Recipe(layout, deltas, {name: torch.randn(hidden) for name in norm_names(layers)})


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """As the shipped file is written: bfloat16 values and uint16 neuron numbers."""
    kinds = {name: torch.uint16 if name in NUMBERS else torch.bfloat16 for name in vars(recipe.layout)}
    tensors = {name: tensor.to(kinds[name]) for name, tensor in vars(recipe.layout).items()}
    for name, pair in recipe.deltas.items():
        tensors |= {f"delta.{name}.{x}": tensor.bfloat16() for x, tensor in zip("ab", pair)}
    tensors |= {f"norm.{name}": tensor.bfloat16() for name, tensor in recipe.norms.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_each_expert_has_its_neurons_with_their_deltas(
    folder: Path, dense: Dense, recipe: Recipe, tmp_path: Path
) -> None:
    out = write_moge(folder, recipe, tmp_path / "moge")
    tensors = load_file(out / "model.safetensors")
    for n in range(len(dense.config.layers)):
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


def test_a_recipe_is_read_as_it_was_written(dense: Dense, recipe: Recipe, tmp_path: Path) -> None:
    loaded = Recipe.load(write_recipe(recipe, tmp_path / "recipe.safetensors"))
    loaded.check(dense.config)
    assert torch.equal(loaded.layout.experts, recipe.layout.experts)
    assert loaded.deltas.keys() == recipe.deltas.keys()
    torch.testing.assert_close(loaded.norms, recipe.norms, rtol=0.01, atol=0.01)


def test_broken_recipes_are_refused(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.safetensors"
    with pytest.raises(ValueError, match="must exist"):
        Recipe.load(path)
    path.write_bytes(write_recipe(recipe, path).read_bytes()[:-100])
    with pytest.raises(ValueError, match="complete safetensors"):
        Recipe.load(path)
    fewer = ExpertLayout(*(tensor[:1] for tensor in vars(recipe.layout).values()))
    for wrong, sentence in (
        (replace(recipe, deltas={n: d for n, d in recipe.deltas.items() if n != "1_up"}), "1_up"),
        (replace(recipe, norms={n: w for n, w in recipe.norms.items() if n != "norm"}), "norms"),
        (Recipe(fewer, {}, {}), "2 layers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            write_moge(folder, wrong, tmp_path / "moge")
    assert not (tmp_path / "moge").exists()


def test_the_shipped_recipe() -> None:
    assert RECIPE.stat().st_size < 16 * 2**20
    layout = Recipe.load(RECIPE).layout
    assert layout.shared.shape == (30, 1088)
    assert layout.experts.shape == (30, 8, 8, 48)
