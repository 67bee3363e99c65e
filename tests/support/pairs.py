"""Fewer cases than a full product: every two values of different axes meet at least once."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value for each axis, always the same ones. Greedy, so hardly more than necessary."""
    places = list(combinations(range(len(axes)), 2))
    left = {(a, x, b, y) for a, b in places for x in range(len(axes[a])) for y in range(len(axes[b]))}
    rows = []
    while left:
        a, x, b, y = min(left)
        row = {a: x, b: y}
        for axis in range(len(axes)):
            if axis not in row:
                row[axis] = max(range(len(axes[axis])), key=lambda v: _new(left, row | {axis: v}))
        left -= {(a, row[a], b, row[b]) for a, b in places}
        rows.append(tuple(values[row[axis]] for axis, values in enumerate(axes)))
    return rows


def _new(left: set[tuple[int, int, int, int]], row: dict[int, int]) -> int:
    """Count the pairs of a row, or of a part of it, that have not met yet."""
    return sum((a, row[a], b, row[b]) in left for a, b in combinations(sorted(row), 2))
