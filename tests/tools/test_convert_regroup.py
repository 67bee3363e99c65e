"""Moving a trained recipe's neurons from the pools to the shared expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from smollm2_moge.regroup import regroup

from fastslow.models.recipe import ExpertLayout, Recipe

LAYERS, GROUPS, EXPERTS, POOL, WIDTH, SHARED, HIDDEN, RANK = 2, 2, 4, 6, 4, 8, 16, 3
INNER = SHARED + GROUPS * POOL


def recipe() -> Recipe:
    source = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(INNER, generator=source) for _ in range(LAYERS)])
    picks = torch.rand(LAYERS, GROUPS, EXPERTS, POOL, generator=source).topk(WIDTH, -1).indices
    layout = ExpertLayout(
        shared=order[:, :SHARED].sort(dim=1).values,
        pools=order[:, SHARED:].view(LAYERS, GROUPS, POOL),
        experts=picks.sort(-1).values,
        router=torch.randn(LAYERS, GROUPS * EXPERTS, HIDDEN, generator=source),
        scale=torch.ones(LAYERS, GROUPS * EXPERTS),
    )
    deltas = {}
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("q", HIDDEN, HIDDEN),
            ("gate", INNER, HIDDEN),
            ("up", INNER, HIDDEN),
            ("down", HIDDEN, INNER),
        ):
            a = torch.randn(RANK, columns, generator=source)
            deltas[f"{layer}_{name}"] = (a, torch.randn(rows, RANK, generator=source))
    return Recipe(layout, deltas, {})


def by_neuron(recipe: Recipe, layer: int, name: str) -> torch.Tensor:
    """A delta of the FFN as a matrix whose neurons are in the dense model's order."""
    a, b = recipe.deltas[f"{layer}_{name}"]
    full = b @ a
    back = recipe.layout.order(layer).argsort()
    return full[:, back] if name == "down" else full[back]


@pytest.mark.parametrize(("moved", "width"), [(0, 4), (1, 4), (2, 3), (4, 1)])
def test_neurons_move_and_their_deltas_with_them(moved: int, width: int) -> None:
    before = recipe()
    after = regroup(before, moved, width)
    after.layout.check(INNER)
    assert after.layout.shared.shape == (LAYERS, SHARED + GROUPS * moved)
    assert after.layout.experts.shape == (LAYERS, GROUPS, EXPERTS, width)
    assert after.layout.pools.equal(before.layout.pools[..., moved:])
    for layer in range(LAYERS):
        for name in ("gate", "up", "down"):
            torch.testing.assert_close(
                by_neuron(after, layer, name), by_neuron(before, layer, name), rtol=0, atol=0
            )
        assert after.deltas[f"{layer}_q"] is before.deltas[f"{layer}_q"]


def test_members_stay_and_the_most_popular_join() -> None:
    before = recipe()
    after = regroup(before, 1, 4)
    for layer in range(LAYERS):
        kept = before.layout.member(layer)[..., 1:]
        now = after.layout.member(layer)
        lost = (kept > now).sum(-1)
        assert not bool((lost > (kept.sum(-1) - 4).clamp(min=0)).any())
        assert now.sum(-1).eq(4).all()


def test_nothing_moved_changes_nothing() -> None:
    before = recipe()
    assert regroup(before, 0, WIDTH).layout.experts.equal(before.layout.experts)


@pytest.mark.parametrize(("moved", "width"), [(-1, 2), (3, 4), (6, 0), (0, 0)])
def test_what_does_not_fit_is_refused(moved: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"moved={moved} and width={width} must fit a pool of 6"):
        regroup(recipe(), moved, width)


def test_the_shipped_recipe_is_regrouped() -> None:
    path = Path(__file__).parents[2] / "fastslow/models/data/smollm2_moge.safetensors"
    assert path.stat().st_size < 16 * 2**20
    layout = Recipe.load(path).layout
    assert layout.shared.shape == (30, 1088)
    assert layout.experts.shape == (30, 8, 8, 48)
