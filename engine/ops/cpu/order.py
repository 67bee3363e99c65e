"""In which order the rows of a matrix are packed: indexes of source rows, -1 for a row of zeros."""

from __future__ import annotations

import numpy as np

from fastslow.engine.ops.cpu.library import TILE
from fastslow.engine.types import Ints

HALF = TILE // 2


def plain(rows: int) -> Ints:
    """As they are, up to whole tiles."""
    return _padded(np.arange(rows), TILE)


def heads(count: int, dim: int) -> Ints:
    """Each head padded to whole tiles, so that a kernel holds a head at a time."""
    parts = [_padded(np.arange(dim) + n * dim, TILE) for n in range(count)]
    return np.concatenate(parts)


def gate_up(neurons: int) -> Ints:
    """Sixteen gates and then their sixteen ups: a tile holds both sides of a product.

    The source has all gates and then all ups.
    """
    gates = _padded(np.arange(neurons), HALF).reshape(-1, 1, HALF)
    ups = np.where(gates < 0, -1, gates + neurons)
    return np.concatenate([gates, ups], axis=1).reshape(-1)


def _padded(rows: Ints, step: int) -> Ints:
    return np.pad(rows, (0, -len(rows) % step), constant_values=-1)
