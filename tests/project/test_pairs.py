"""The helper that thins out matrices of tests leaves no pair out."""

from __future__ import annotations

from itertools import combinations

import pytest
from pairs import pairwise


@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 3), 6), ((3, 3, 3), 12), ((15, 4, 3, 2), 66), ((10, 7, 2, 2), 75)]
)
def test_every_two_values_meet(sizes: tuple[int, ...], most: int) -> None:
    axes = [[f"{axis}.{n}" for n in range(size)] for axis, size in enumerate(sizes)]
    rows = pairwise(*axes)
    for one, two in combinations(range(len(axes)), 2):
        met = {(row[one], row[two]) for row in rows}
        assert met == {(x, y) for x in axes[one] for y in axes[two]}
    assert len(rows) == len(set(rows)) <= most
    assert rows == pairwise(*axes)
