"""Rows of a step in every arrangement, for tests of layouts over blocks."""

import numpy as np

from fastslow.engine.rows import Segment
from fastslow.engine.types import Ints

BLOCK = 8


def text(blocks: list[int], length: int) -> Ints:
    """Slots of a text that lies in these blocks."""
    return np.concatenate([np.arange(b * BLOCK, (b + 1) * BLOCK) for b in blocks])[:length]


def segment(slots: Ints, context: int, parents: list[int] | None = None) -> Segment:
    """Rows after a context, in a chain where no parents are given."""
    size = len(slots) - context
    parents = list(range(-1, size - 1)) if parents is None else parents
    positions: list[int] = []
    for parent in parents:
        positions.append(context if parent < 0 else positions[parent] + 1)
    return Segment([1] * size, positions, parents, slots[context:], slots[:context])


TREE = [-1, 0, 1, 2, 1, 4, 0]
CASES = {
    "a first chunk": [segment(text([3, 1, 2], 21), 0)],
    "one row each": [segment(text([3, 1], 9), 8), segment(text([5], 4), 3)],
    "a chunk over borders": [segment(text([3, 1, 7], 23), 5)],
    "a tree": [segment(text([3, 1, 7], 20), 13, TREE)],
    "a tree at the beginning": [segment(text([3], 7), 0, TREE)],
    "rows that share no parent": [segment(text([3, 1], 12), 8, [-1, -1, 0, 1])],
    "scattered": [segment(np.array([40, 41, 9, 3, 77, 78, 5]), 4)],
    "a path after a text": [segment(np.concatenate((text([6, 2], 11), [19 + 8 * 4, 51, 60])), 13)],
    "a path that looks aligned at its ends": [segment(np.concatenate((text([6], 4), [53, 52, 54, 55])), 7)],
    "all kinds": [
        segment(text([3, 1, 2], 21), 0), segment(text([4], 5), 4), segment(text([5, 6, 7], 20), 13, TREE),
        segment(np.array([80, 9, 94]), 2), segment(text([8], 3), 2),
    ],
}  # fmt: skip
