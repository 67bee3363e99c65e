"""Order in which the kernels want the rows of a matrix, by number; -1 is a row of zeros."""

from __future__ import annotations

from functools import cache

import numpy as np

from fastslow.engine.types import Ints

TILE = 32
HALF = TILE // 2


@cache
def plain_order(rows: int) -> Ints:
    """As they are, up to whole tiles. Shared by all who ask, so nobody can write to it."""
    order = _padded(np.arange(rows), TILE)
    order.flags.writeable = False
    return order


def heads_order(count: int, dim: int, dims: Ints | None = None, first: int = 0) -> Ints:
    """Every head of `dim` rows padded to whole tiles, so that a kernel holds a head at a time.

    dims: a head's rows in the kernels' order; None: as they are. first: the first head's first row.
    """
    own = _padded(np.arange(dim) if dims is None else dims, TILE)
    return np.concatenate([np.where(own < 0, -1, own + first + n * dim) for n in range(count)])


@cache
def gate_up_order(neurons: int) -> Ints:
    """Sixteen gates and then their sixteen ups, of a source that has all gates and then all ups: a tile holds both
    sides of a product."""
    gates = _padded(np.arange(neurons), HALF).reshape(-1, 1, HALF)
    ups = np.where(gates < 0, -1, gates + neurons)
    order = np.concatenate([gates, ups], axis=1).reshape(-1)
    order.flags.writeable = False
    return order


def _padded(rows: Ints, step: int) -> Ints:
    return np.pad(rows, (0, -len(rows) % step), constant_values=-1)
