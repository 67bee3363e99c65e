"""In which order the kernels want the rows of a matrix, by number; -1 is a row of zeros."""

from __future__ import annotations

import numpy as np

from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.types import Ints

HALF = TILE // 2


def plain_order(rows: int) -> Ints:
    """As they are, up to whole tiles."""
    return _padded(np.arange(rows), TILE)


def heads_order(count: int, dim: int, dims: Ints | None = None, first: int = 0) -> Ints:
    """Every head padded to whole tiles, so that a kernel holds a head at a time.

    dim: rows that a head has. dims: those of a head in the kernels' order; None: as they are. first: the
    first head's first row.
    """
    own = _padded(np.arange(dim) if dims is None else dims, TILE)
    return np.concatenate([np.where(own < 0, -1, own + first + n * dim) for n in range(count)])


def gate_up_order(neurons: int) -> Ints:
    """Sixteen gates and then their sixteen ups: a tile holds both sides of a product.

    The source has all gates and then all ups.
    """
    gates = _padded(np.arange(neurons), HALF).reshape(-1, 1, HALF)
    ups = np.where(gates < 0, -1, gates + neurons)
    return np.concatenate([gates, ups], axis=1).reshape(-1)


def _padded(rows: Ints, step: int) -> Ints:
    return np.pad(rows, (0, -len(rows) % step), constant_values=-1)
