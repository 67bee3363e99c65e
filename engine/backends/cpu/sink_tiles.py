"""Learned keys and values that stand before every text, as the kernels read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LANES = 16  # keys of a tile, see kernels/tile.h


class FloatSource(Protocol):
    """Gives tensors by name, as floats."""

    @property
    def read(self) -> Callable[[str], Tensor]: ...


@dataclass(frozen=True, slots=True)
class SinkTiles:
    """float32 tiles [sinks / 16][kv_heads], of keys [dim][16] or values [16][dim].

    dims: of a key in the kernels' order, empty for values, which are filled up with zeros. norm: the name of what
    keys are normed by, as keys of the text are, less `norm_offset`; "": nothing. source: "": zeros.
    """

    key: str
    sinks: int
    kv_heads: int
    dim: int
    source: str
    dims: tuple[int, ...] = ()
    norm: str = ""
    norm_offset: float = 0.0
    eps: float = 0.0

    @property
    def nbytes(self) -> int:
        return -(-self.sinks // LANES) * LANES * self.kv_heads * self.dim * 4

    def write(self, into: NDArray[np.uint8], sources: FloatSource) -> None:
        """Fill `nbytes` bytes."""
        if not self.source:
            into[:] = 0
            return
        given: Tensor = sources.read(self.source).float()  # [sinks, kv_heads, dim]
        if self.norm:
            size = torch.rsqrt(given.square().mean(-1, keepdim=True) + self.eps)
            given = given * size * (sources.read(self.norm).float() + self.norm_offset)
        if self.dims:
            given = given[..., list(self.dims)]
        count = -(-self.sinks // LANES) * LANES
        padded = np.zeros((count, self.kv_heads, self.dim), np.float32)
        padded[: self.sinks, :, : given.shape[-1]] = given.numpy()
        tiles = padded.reshape(-1, LANES, self.kv_heads, self.dim)
        order = (0, 2, 3, 1) if self.dims else (0, 2, 1, 3)
        into.view(np.float32)[:] = tiles.transpose(order).ravel()
