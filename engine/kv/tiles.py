"""Keys and values in the order in which the CPU kernels read them."""

from __future__ import annotations

import numpy as np
import torch

from fastslow.engine.kv.storage import KVStorage, lazy_zeros
from fastslow.engine.ops.cpu import library
from fastslow.engine.types import Ints

LANES = 16  # slots of a tile; kernels/tile.h has the same


class TiledStorage(KVStorage):
    """Keys and values, `k[layer]` and `v[layer]`, in tiles of sixteen slots.

    A tile of one KV head comes in words of 32 bits, P = 2 bfloat16 or 1 float32. Keys are
    [tiles, kv_heads, D / P, 16, P], so that a query is multiplied with sixteen keys at once and
    nobody transposes them; values are [tiles, kv_heads, 16 / P, D, P], so that a word is one place
    of two neighbours. A text whose positions lie in tiles in their order, as pages of 16 tokens
    do, is read in place; any other is gathered.

    Raises ValueError for a dtype other than float32 and bfloat16, an odd head_dim, and a device
    other than the CPU.
    """

    def _allocate(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype of tiles is {dtype}, but must be float32 or bfloat16")
        if head_dim % 2:
            raise ValueError(f"head_dim of tiles is {head_dim}, but must be even")
        if torch.device(device).type != "cpu":
            raise ValueError(f"device of tiles is {device}, but must be the CPU")
        tiles, pack = -(-slots // LANES), 4 // dtype.itemsize
        side = layers * tiles * kv_heads * LANES * head_dim
        # the kernels read whole vectors, which may pass the end of the last tile
        whole = lazy_zeros((2 * side + 16 * pack,), dtype, device)
        self._slots = slots
        return (
            whole[:side].view(layers, tiles, kv_heads, head_dim // pack, LANES, pack),
            whole[side : 2 * side].view(layers, tiles, kv_heads, LANES // pack, head_dim, pack),
        )

    @property
    def slots(self) -> int:
        """Rows per layer that were asked for; tiles round them up."""
        return self._slots

    def read(self, slots: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        tiles, lanes, rows, halves = self._places(slots)
        keys = self._keys[:, tiles, :, :, lanes].flatten(-2)
        values = self._values[:, tiles, :, rows, :, halves]
        return keys.transpose(0, 1), values.transpose(0, 1)

    def write(self, slots: Ints, keys: torch.Tensor, values: torch.Tensor) -> None:
        tiles, lanes, rows, halves = self._places(slots)
        pack = self._keys.shape[-1]
        fresh = keys.transpose(0, 1).to(self.dtype)
        self._keys[:, tiles, :, :, lanes] = fresh.reshape(*fresh.shape[:-1], -1, pack)
        self._values[:, tiles, :, rows, :, halves] = values.transpose(0, 1).to(self.dtype)

    def move(self, src: Ints, dst: Ints) -> None:
        if not library.available():
            super().move(src, dst)
            return
        read, written = (np.ascontiguousarray(slots, dtype=np.int64) for slots in (src, dst))
        both = np.concatenate((read, written))
        if len(read) != len(written) or (
            len(both) and not 0 <= both.min() <= both.max() < self.slots
        ):
            raise IndexError(f"slots {src} to {dst} are not pairs within {self.slots}")
        head_dim, kv_heads = self._values.shape[-2], self._keys.shape[2]
        failed = library.kernels().fs_move(
            self.pointers[0].ctypes.data,
            self.pointers[1].ctypes.data,
            len(self.k),
            read.ctypes.data,
            written.ctypes.data,
            len(read),
            kv_heads,
            head_dim,
            self.dtype == torch.float32,
        )
        if failed:
            raise MemoryError(f"moving {len(read)} rows found no memory")

    def _places(self, slots: Ints) -> tuple[torch.Tensor, ...]:
        """Of each slot its tile, its lane, and among values its row of words and part of a word."""
        at = torch.as_tensor(slots)
        pack = self._keys.shape[-1]
        lanes = at % LANES
        return at // LANES, lanes, lanes // pack, lanes % pack
