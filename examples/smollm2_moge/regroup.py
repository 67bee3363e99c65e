"""More of a trained recipe's neurons become shared: `python examples/smollm2_moge/regroup.py --help`.

What a MoGE loses against its dense original are the pool neurons that no chosen expert holds, and
for few groups those of the groups that do not run. Moving the most important neurons of every pool
to the shared expert gives both back, at the price of a larger shared expert; router, deltas and
norms stay as trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastslow.models.recipe import ExpertLayout, Recipe

ROW_DELTAS = ("gate", "up")  # their rows are neurons; the down projection's columns are


def regroup(recipe: Recipe, moved: int, width: int) -> Recipe:
    """The recipe with the first `moved` neurons of every pool shared, and experts of `width`.

    Pools are in rank order, so the first neurons are the most important ones. An expert keeps its
    members, best-ranked first; where it has fewer than `width` left, the neurons that most experts
    of its group hold join it.

    Raises:
        ValueError: unless 0 <= moved and 1 <= width <= pool - moved.
    """
    old = recipe.layout
    pool = old.pools.shape[-1]
    if moved < 0 or not 1 <= width <= pool - moved:
        raise ValueError(f"moved={moved} and width={width} must fit a pool of {pool} neurons")
    shared = torch.cat((old.shared, old.pools[..., :moved].flatten(1)), dim=1)
    new = ExpertLayout(
        shared=shared.sort(dim=1).values,
        pools=old.pools[..., moved:].contiguous(),
        experts=_members(old, moved, width),
        router=old.router,
        scale=old.scale,
    )
    deltas = {name: _reordered(name, pair, old, new) for name, pair in recipe.deltas.items()}
    return Recipe(new, deltas, recipe.norms)


def _members(old: ExpertLayout, moved: int, width: int) -> Tensor:
    """int64 [layers, groups, experts, width], positions in the shorter pools."""
    holds = torch.stack([old.member(layer) for layer in range(len(old.shared))])
    rank = torch.arange(holds.shape[-1], dtype=torch.float32) / holds.shape[-1]
    popular = holds.sum(dim=2, keepdim=True).expand_as(holds)
    # members by rank before all others; the others by how many experts hold them, then by rank
    score = torch.where(holds > 0, holds.shape[2] + 1 - rank, popular - rank)[..., moved:]
    return score.topk(width, dim=-1).indices.sort(dim=-1).values


def _reordered(
    name: str, pair: tuple[Tensor, Tensor], old: ExpertLayout, new: ExpertLayout
) -> tuple[Tensor, Tensor]:
    """A delta of the FFN with its neurons in the new layout's order; others as they are."""
    number, _, linear = name.partition("_")
    a, b = pair
    if linear not in (*ROW_DELTAS, "down"):
        return pair
    layer = int(number)
    place = old.order(layer).argsort()[new.order(layer)]
    return (a, b[place]) if linear in ROW_DELTAS else (a[:, place], b)


def main(
    source: Annotated[Path, typer.Argument(help="Trained recipe.")],
    target: Annotated[Path, typer.Argument(help="Recipe to write.")],
    moved: Annotated[int, typer.Option(help="Neurons of each pool that become shared.")],
    width: Annotated[int, typer.Option(help="Neurons of a routed expert.")],
) -> None:
    """Give a trained recipe a larger shared expert and smaller routed ones."""
    regroup(Recipe.load(source), moved, width).save(target)


if __name__ == "__main__":
    typer.run(main)
