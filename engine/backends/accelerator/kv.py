"""Keys and values in blocks of 128 slots, as accelerators read them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastslow.engine.kv.storage import KVShape, KVStorage
from fastslow.engine.types import Ints

BLOCK = 128  # slots of a block
SPARE = 256  # slots after the last page: rows that only fill up a step write there


class BlockStorage(KVStorage):
    """Keys and values, `k[layer]` and `v[layer]`, each [blocks, 128, kv_heads, width].

    A page is one block, so a text whose positions lie in blocks in their order is read by its block
    numbers. After the pages lie `SPARE` more slots, from `spare` on, that no request uses.
    """

    page_size = BLOCK
    tile = 0

    def _allocate(self, s: KVShape) -> tuple[Tensor, Tensor]:
        blocks = -(-s.slots // BLOCK)
        self.spare = blocks * BLOCK
        shape = self._block_shape(blocks + SPARE // BLOCK, s.kv_heads, self.width(s.head_dim))
        both = torch.zeros((2, s.layers, *shape), dtype=s.dtype, device=s.device)
        return both[0], both[1]

    def _block_shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, BLOCK, kv_heads, width

    def read(self, slots: Ints) -> tuple[Tensor, Tensor]:
        at, dim = self._places(slots), self.shape.head_dim
        return self._keys[:, *at][..., :dim], self._values[:, *at][..., :dim]

    def write(self, slots: Ints, keys: Tensor, values: Tensor) -> None:
        at, dim = self._places(slots), self.shape.head_dim
        self._keys[:, *at, :, :dim] = keys.to(self.dtype)
        self._values[:, *at, :, :dim] = values.to(self.dtype)

    def _places(self, slots: Ints) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(slots, device=self.device)
        return at // BLOCK, at % BLOCK


class WideStorage(BlockStorage):
    """Blocks whose rows are padded with zeros to the widths that some kernels read."""

    widths: ClassVar[tuple[int, ...]] = (128, 192)

    @classmethod
    def width(cls, head_dim: int) -> int:
        return next((width for width in cls.widths if width >= head_dim), head_dim)


class FractalStorage(WideStorage):
    """Blocks in the fractal order (NZ) of small NPUs: [blocks, kv_heads * width / 16, 128, 16]."""

    widths = (128,)

    def _block_shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, kv_heads * width // 16, BLOCK, 16

    def read(self, slots: Ints) -> tuple[Tensor, Tensor]:
        blocks, places = self._places(slots)
        return self._rows(self._keys, blocks, places), self._rows(self._values, blocks, places)

    def write(self, slots: Ints, keys: Tensor, values: Tensor) -> None:
        blocks, places = self._places(slots)
        for side, fresh in ((self._keys, keys), (self._values, values)):
            room = self.width(self.shape.head_dim) - self.shape.head_dim
            padded = torch.nn.functional.pad(fresh.to(self.dtype), (0, room))
            # two index tensors apart from each other: their axis comes first
            side[:, blocks, :, places] = _sixteens(padded).transpose(0, 1)

    def _rows(self, side: Tensor, blocks: Tensor, places: Tensor) -> Tensor:
        found = side[:, blocks, :, places].transpose(0, 1)
        return found.reshape(*found.shape[:2], self.shape.kv_heads, -1)[..., : self.shape.head_dim]


def _sixteens(rows: Tensor) -> Tensor:
    """[layers, n, kv_heads, width] as [layers, n, kv_heads * width / 16, 16]."""
    return rows.reshape(*rows.shape[:2], -1, 16)
