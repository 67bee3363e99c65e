"""A step's rows in the form that the kernels take, with the rotary angles of their positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.rope import rotation
from fastslow.engine.types import Floats, Ints, Rows

FIRST = 1024  # positions of the first table


class Rotary:
    """Angles of half-split rotary embedding for a model; see `engine.model.rope`."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._cos: Floats = np.empty((0, config.head_dim // 2), dtype=np.float32)
        self._sin = self._cos

    def at(self, rows: Rows) -> tuple[Floats, Floats]:
        """float32 [T, head_dim / 2] each."""
        positions = rows.positions
        if self._config.dynamic_rope:  # the base depends on how long a request may become
            return self._computed(positions, np.repeat(rows.reach, np.diff(rows.starts)))
        most = int(positions.max()) + 1
        if most > len(self._cos):
            size = max(FIRST, 1 << (most - 1).bit_length())
            all_of_them = np.arange(size)
            self._cos, self._sin = self._computed(all_of_them, np.zeros_like(all_of_them))
        return self._cos[positions], self._sin[positions]

    def _computed(self, positions: Ints, reach: Ints) -> tuple[Floats, Floats]:
        half = self._config.head_dim // 2
        cos, sin = rotation(self._config, positions, reach, torch.float32, torch.device("cpu"))
        return _half(cos[:, 0, :half]), _half(sin[:, 0, half:])


def _half(values: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.numpy())


@dataclass(slots=True)
class Tails:
    """Which of the step's own slots each row sees after its request's context, itself the last.

    chains: uint8 [B], whether a request's rows follow each other, so that they share one list.
    """

    slots: Ints
    starts: Ints  # [T]
    lengths: Ints  # [T]
    chains: NDArray[np.uint8]  # [B]

    @classmethod
    def of(cls, rows: Rows) -> Tails:
        """The paths from each request's context to each of its rows."""
        if len(rows.tokens) == len(rows.starts) - 1:  # a row each, as in plain decoding
            count = len(rows.tokens)
            ones = np.ones(count, dtype=np.int64)
            return cls(rows.slots, rows.starts[:-1], ones, np.ones(count, dtype=np.uint8))
        sizes = np.diff(rows.starts)
        places = np.arange(len(rows.tokens)) - np.repeat(rows.starts[:-1], sizes)
        follows = rows.parents == places - 1
        starts = np.repeat(rows.starts[:-1], sizes)
        chains = np.ones(len(sizes), dtype=np.uint8)
        if follows.all():
            return cls(rows.slots, starts, places + 1, chains)
        extra, lengths = list[int](), places + 1
        given, parents, first_tail = rows.slots.tolist(), rows.parents.tolist(), len(rows.slots)
        for b in np.unique(np.repeat(np.arange(len(sizes)), sizes)[~follows]).tolist():
            chains[b] = 0
            first, last = int(rows.starts[b]), int(rows.starts[b + 1])
            paths: list[list[int]] = []  # slots from the root to each row
            for row in range(first, last):
                parent = parents[row]
                paths.append([*(paths[parent] if parent >= 0 else ()), given[row]])
                starts[row], lengths[row] = first_tail + len(extra), len(paths[-1])
                extra += paths[-1]
        return cls(np.array(given + extra, dtype=np.int64), starts, lengths, chains)


def parts(rows: Rows, most: int) -> Iterator[tuple[int, int, Ints, Ints]]:
    """The rows at most `most` at a time: first, last, their requests, their starts from 0."""
    count = len(rows.tokens)
    for first in range(0, count, most):
        last = min(first + most, count)
        starts = np.clip(rows.starts, first, last) - first
        owners = np.flatnonzero(np.diff(starts))
        yield first, last, owners, np.append(starts[owners], last - first)
