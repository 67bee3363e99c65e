"""Keys and values in the order in which the CPU kernels read them: in the model's dtype, or in int8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.kv.storage import KVStorage, lazy_zeros
from fastslow.engine.model.int8 import quantise_tokens
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


PACK = 4  # bytes of a word
SCALES = (
    2 * LANES * 4
)  # bytes behind a tile of keys: float32 scales of its keys, then of its values
OFFSET = 128  # bytes are kept unsigned, as dot instructions take them


class Int8Tiles(KVStorage):
    """Keys and values in tiles of sixteen slots, each row of a head in int8 with a scale of its own.

    `dtype` is what rows are read and written in. A tile of keys of one KV head is
    [D / 4, 16, 4] bytes and then [2, 16] float32, the scales of the slots' keys and values; a tile of
    values is [16 / 4, D, 4]. So a token takes 2 * (D + 4) bytes a layer and KV head.

    Raises ValueError for a head_dim that is no multiple of 4, and a device other than the CPU.
    """

    def _allocate(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        if head_dim % PACK:
            raise ValueError(f"head_dim of int8 tiles is {head_dim}, but must be a multiple of 4")
        if torch.device(device).type != "cpu":
            raise ValueError(f"device of int8 tiles is {device}, but must be the CPU")
        tiles, size = -(-slots // LANES), LANES * head_dim
        count = layers * tiles * kv_heads
        # the kernels read whole vectors, which may pass the end of the last tile
        whole = lazy_zeros((count * (2 * size + SCALES) + 64,), torch.uint8, device)
        self._slots, self._shown, self._dim = slots, dtype, head_dim
        keys, values = count * (size + SCALES), count * size
        return (
            whole[:keys].view(layers, tiles, kv_heads, size + SCALES),
            whole[keys : keys + values].view(
                layers, tiles, kv_heads, LANES // PACK, head_dim, PACK
            ),
        )

    @classmethod
    def token_bytes(cls, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        return 2 * layers * kv_heads * (head_dim + 4)

    @property
    def slots(self) -> int:
        """Rows per layer that were asked for; tiles round them up."""
        return self._slots

    @property
    def dtype(self) -> torch.dtype:
        return self._shown

    @property
    def kept(self) -> torch.dtype:
        return torch.int8

    def read(self, slots: Ints) -> tuple[Tensor, Tensor]:
        keys, values, scales = self._raw(slots)
        sides = (keys, values)
        floats = [
            (side.to(torch.int16) - OFFSET).float() * scales[i, ..., None]
            for i, side in enumerate(sides)
        ]
        return floats[0].to(self.dtype), floats[1].to(self.dtype)

    def write(self, slots: Ints, keys: Tensor, values: Tensor) -> None:
        rounded, scales = [], []
        for side in (keys, values):
            flat, scale = quantise_tokens(side.reshape(-1, self._dim))
            rounded.append((flat.to(torch.int16) + OFFSET).to(torch.uint8).view(side.shape))
            scales.append(scale.view(side.shape[:-1]))
        self._put(slots, rounded[0], rounded[1], torch.stack(scales))

    def move(self, src: Ints, dst: Ints) -> None:
        self._put(dst, *self._raw(src))

    def _raw(self, slots: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes [layers, n, kv_heads, D] of keys and of values, and scales [2, layers, n, kv_heads]."""
        tiles, lanes = self._places(slots)
        keys = self._key_words()[:, tiles, :, :, lanes].flatten(-2).transpose(0, 1)
        values = self._values[:, tiles, :, lanes // PACK, :, lanes % PACK].transpose(0, 1)
        scales = self._scales()[:, tiles, :, :, lanes].permute(3, 1, 0, 2)
        return keys, values, scales

    def _put(self, slots: Ints, keys: Tensor, values: Tensor, scales: Tensor) -> None:
        tiles, lanes = self._places(slots)
        words = keys.transpose(0, 1)
        self._key_words()[:, tiles, :, :, lanes] = words.reshape(*words.shape[:-1], -1, PACK)
        self._values[:, tiles, :, lanes // PACK, :, lanes % PACK] = values.transpose(0, 1)
        self._scales()[:, tiles, :, :, lanes] = scales.permute(2, 1, 3, 0)

    def _key_words(self) -> Tensor:
        """[layers, tiles, kv_heads, D / 4, 16, 4]."""
        size, step = self._keys.shape[:-1], self._keys.stride()
        shape = (*size, self._dim // PACK, LANES, PACK)
        return self._keys.as_strided(shape, (*step[:-1], LANES * PACK, PACK, 1))

    def _scales(self) -> Tensor:
        """[layers, tiles, kv_heads, 2, 16]: of keys, of values."""
        floats = self._keys.view(torch.float32)[..., -SCALES // 4 :]
        step = floats.stride()
        shape, strides = (*floats.shape[:-1], 2, LANES), (*step[:-1], LANES, 1)
        return floats.as_strided(shape, strides, floats.storage_offset())

    def _places(self, slots: Ints) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(slots)
        return at // LANES, at % LANES
