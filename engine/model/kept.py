"""Which layers of a model run: all, or some of them where the model drafts for itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def kept_layers(layers: Sequence[int], running: Sequence[int]) -> tuple[int, ...]:
    """`layers`, of the `running` ones, as they will run.

    Raises:
        ValueError: none, out of order, or one that does not run.
    """
    kept = tuple(layers)
    if not kept or not set(kept) <= set(running) or any(a >= b for a, b in pairwise(kept)):
        raise ValueError(f"layers {list(kept)} must ascend and be {_of(running)}")
    return kept


def check_features(features: Sequence[int], running: Sequence[int]) -> None:
    """ValueError for a feature layer that does not run."""
    if absent := [n for n in features if n not in running]:
        raise ValueError(f"feature layer {absent[0]} must be {_of(running)}")


def _of(running: Sequence[int]) -> str:
    every = tuple(range(len(running)))
    return f"in 0..{every[-1]}" if tuple(running) == every else f"one of {list(running)}"
