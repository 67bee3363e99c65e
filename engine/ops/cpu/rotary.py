"""Cosines and sines of rotary positions, kept from step to step."""

from __future__ import annotations

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
        scaling = config.rope_scaling
        self._moves = scaling is not None and scaling.kind == "dynamic"
        self._cos: Floats = np.empty((0, config.head_dim // 2), dtype=np.float32)
        self._sin = self._cos

    def at(self, rows: Rows) -> tuple[Floats, Floats]:
        """float32 [T, head_dim / 2] each."""
        positions = rows.positions
        if self._moves:  # the base depends on how long a request may become
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
