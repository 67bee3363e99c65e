"""Keys and values in blocks of 128 slots, as accelerators read them."""

from __future__ import annotations

import torch

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.types import Ints

BLOCK = 128  # slots of a block
SPARE = 256  # slots behind the last page: rows that only fill up a step write there


class BlockStorage(KVStorage):
    """Keys and values, `k[layer]` and `v[layer]`, each [blocks, 128, kv_heads, width].

    A page is one block, so a text whose positions lie in blocks in their order is read by its block
    numbers. Behind the pages lie `SPARE` more slots, from `spare` on, that belong to nobody.
    """

    page_size = BLOCK

    def _allocate(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = -(-slots // BLOCK)
        self._slots, self._heads, self._dim = slots, kv_heads, head_dim
        self.spare = blocks * BLOCK
        shape = self._shape(blocks + SPARE // BLOCK, kv_heads, self.width(head_dim))
        both = torch.zeros((2, layers, *shape), dtype=dtype, device=device)
        return both[0], both[1]

    def _shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, BLOCK, kv_heads, width

    @property
    def slots(self) -> int:
        """Rows per layer that were asked for; blocks round them up."""
        return self._slots

    def read(self, slots: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        blocks, places = self._places(slots)
        return (
            self._keys[:, blocks, places][..., : self._dim],
            self._values[:, blocks, places][..., : self._dim],
        )

    def write(self, slots: Ints, keys: torch.Tensor, values: torch.Tensor) -> None:
        blocks, places = self._places(slots)
        self._keys[:, blocks, places, :, : self._dim] = keys.to(self.dtype)
        self._values[:, blocks, places, :, : self._dim] = values.to(self.dtype)

    def _places(self, slots: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.as_tensor(slots, device=self.device)
        return at // BLOCK, at % BLOCK


class WideStorage(BlockStorage):
    """Blocks whose rows are padded with zeros to 128, the only width that some kernels read."""

    @classmethod
    def width(cls, head_dim: int) -> int:
        return max(head_dim, 128)


class FractalStorage(WideStorage):
    """Blocks in the fractal order (NZ) of small NPUs: [blocks, kv_heads * width / 16, 128, 16]."""

    def _shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, kv_heads * width // 16, BLOCK, 16

    def read(self, slots: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        blocks, places = self._places(slots)
        return self._rows(self._keys, blocks, places), self._rows(self._values, blocks, places)

    def write(self, slots: Ints, keys: torch.Tensor, values: torch.Tensor) -> None:
        blocks, places = self._places(slots)
        for side, fresh in ((self._keys, keys), (self._values, values)):
            room = self.width(self._dim) - self._dim
            padded = torch.nn.functional.pad(fresh.to(self.dtype), (0, room))
            # two index tensors apart from each other: their axis comes first
            side[:, blocks, :, places] = _sixteens(padded).transpose(0, 1)

    def _rows(self, side: torch.Tensor, blocks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        found = side[:, blocks, :, places].transpose(0, 1)
        return found.reshape(*found.shape[:2], self._heads, -1)[..., : self._dim]


def _sixteens(rows: torch.Tensor) -> torch.Tensor:
    """[layers, n, kv_heads, width] as [layers, n, kv_heads * width / 16, 16]."""
    return rows.reshape(*rows.shape[:2], -1, 16)
