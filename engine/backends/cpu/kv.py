"""Keys and values in the order in which the CPU kernels read them: in the model's dtype, or in int8."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.host.lazy_memory import lazy_zeros
from fastslow.engine.kv.state.layout import StateLayout
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.ops import quantise_tokens
from fastslow.engine.types import Ints

LANES = 16  # slots of a tile; kernels/tile.h has the same


class Tiles(KVStorage):
    """Rows in tiles of sixteen slots, alike in all layers that have any."""

    tile = LANES

    def _tiles(self) -> tuple[int, int, int]:
        """Layers, tiles, KV heads."""
        if self.device.type != "cpu":
            raise ValueError(f"device of tiles is {self.device}, but must be the CPU")
        layers, self.kv_heads, self.head_dim = self.layout.alike(type(self).__name__)
        return layers, -(-self.slots // LANES), self.kv_heads


class TiledStorage(Tiles):
    """Keys and values, `k[layer]` and `v[layer]`, in tiles of sixteen slots.

    A tile of one KV head comes in words of 32 bits, P = 2 bfloat16 or 1 float32. Keys are
    [tiles, kv_heads, D / P, 16, P], so that a query is multiplied with sixteen keys at once and
    they are never transposed; values are [tiles, kv_heads, 16 / P, D, P], so that a word is one place
    of two neighbours. A text whose positions lie in tiles in their order, as pages of 16 tokens
    do, is read in place; any other is gathered.

    Raises ValueError for a dtype other than float32 and bfloat16, an odd head_dim, and a device
    other than the CPU.
    """

    def _allocate(self) -> tuple[Tensor, ...]:
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype of tiles is {self.dtype}, but must be float32 or bfloat16")
        shape, pack, dim = self._tiles(), 4 // self.dtype.itemsize, self.head_dim
        if dim % 2:
            raise ValueError(f"head_dim of tiles is {dim}, but must be even")
        side = math.prod(shape) * LANES * dim
        # the kernels read whole vectors, which may pass the end of the last tile
        whole = lazy_zeros((2 * side + 16 * pack,), self.dtype, self.device)
        return (
            whole[:side].view(*shape, dim // pack, LANES, pack),
            whole[side : 2 * side].view(*shape, LANES // pack, dim, pack),
        )

    def read(self, slots: Ints) -> tuple[Tensor, Tensor]:
        tiles, lanes, rows, halves = self._places(slots)
        keys = self.sides[0][:, tiles, :, :, lanes].flatten(-2)
        values = self.sides[1][:, tiles, :, rows, :, halves]
        return keys.transpose(0, 1), values.transpose(0, 1)

    def write(self, slots: Ints, *sides: Tensor) -> None:
        tiles, lanes, rows, halves = self._places(slots)
        keys, values = (side.transpose(0, 1).to(self.dtype) for side in sides)
        pack = self.sides[0].shape[-1]
        self.sides[0][:, tiles, :, :, lanes] = keys.reshape(*keys.shape[:-1], -1, pack)
        self.sides[1][:, tiles, :, rows, :, halves] = values

    def move(self, src: Ints, dst: Ints) -> None:
        if not library.available():
            super().move(src, dst)
            return
        read, written = (np.ascontiguousarray(slots, dtype=np.int64) for slots in (src, dst))
        count, layers = len(read), len(self.layout.rows)
        keys, values = self.addresses(tuple(self.layout.rows))
        failed = library.kernels().fs_move(
            keys,
            values,
            layers,
            library.address("src", read, library.INT64, count),
            library.address("dst", written, library.INT64, count),
            count,
            self.slots,
            self.kv_heads,
            self.head_dim,
            self.dtype == torch.float32,
        )
        library.check(failed, f"moving {count} rows of keys and values")

    def _places(self, slots: Ints) -> tuple[Tensor, ...]:
        """Of each slot its tile, its lane, and among values its row of words and part of a word."""
        at = torch.as_tensor(slots)
        pack = self.sides[0].shape[-1]
        lanes = at % LANES
        return at // LANES, lanes, lanes // pack, lanes % pack


PACK = 4  # bytes of a word
SCALES = 2 * LANES * 4  # bytes after a tile of keys: float32 scales of its keys, of its values
OFFSET = 128  # bytes are kept unsigned, as dot instructions take them


class Int8Tiles(Tiles):
    """Keys and values in tiles of sixteen slots, each row of a head in int8 with its scale.

    `dtype` is what rows are read and written in. A tile of keys of one KV head is
    [D / 4, 16, 4] bytes and then [2, 16] float32, the scales of the slots' keys and values; a tile of
    values is [16 / 4, D, 4]. So a token takes 2 * (D + 4) bytes a layer and KV head.

    Raises ValueError for a head_dim that is no multiple of 4, and a device other than the CPU.
    """

    def _allocate(self) -> tuple[Tensor, ...]:
        shape, dim = self._tiles(), self.head_dim
        if (misfit := self.misfit(self.layout)) is not None:
            raise ValueError(f"keys and values in int8 need {misfit}")
        size = LANES * dim
        count = math.prod(shape)
        # the kernels read whole vectors, which may pass the end of the last tile
        whole = lazy_zeros((count * (2 * size + SCALES) + 64,), torch.uint8, self.device)
        keys, values = count * (size + SCALES), count * size
        return (
            whole[:keys].view(*shape, size + SCALES),
            whole[keys : keys + values].view(*shape, LANES // PACK, dim, PACK),
        )

    @classmethod
    def misfit(cls, layout: StateLayout) -> str | None:
        """Say what it needs that a layout is not; None: it can keep it."""
        dim = layout.alike(cls.__name__)[2]
        return f"a head_dim that is a multiple of 4, not {dim}" if dim % PACK else None

    @classmethod
    def token_bytes(cls, layout: StateLayout, dtype: torch.dtype) -> int:
        layers, kv_heads, dim = layout.alike(cls.__name__)
        return 2 * layers * kv_heads * (dim + 4)

    @property
    def memory_dtype(self) -> torch.dtype:
        return torch.int8

    def read(self, slots: Ints) -> tuple[Tensor, Tensor]:
        *sides, scales = self._raw(slots)
        keys, values = (
            ((side.to(torch.int16) - OFFSET).float() * scale[..., None]).to(self.dtype)
            for side, scale in zip(sides, scales)
        )
        return keys, values

    def write(self, slots: Ints, *sides: Tensor) -> None:
        rounded, scales = [], []
        for side in sides:
            flat, scale = quantise_tokens(side.reshape(-1, self.head_dim))
            rounded.append((flat.to(torch.int16) + OFFSET).to(torch.uint8).view(side.shape))
            scales.append(scale.view(side.shape[:-1]))
        self._put(slots, rounded[0], rounded[1], torch.stack(scales))

    def move(self, src: Ints, dst: Ints) -> None:
        self._put(dst, *self._raw(src))

    def _raw(self, slots: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes [layers, n, kv_heads, D] of keys and of values, and scales [2, layers, n, kv_heads]."""
        tiles, lanes = self._places(slots)
        keys = self._key_words()[:, tiles, :, :, lanes].flatten(-2).transpose(0, 1)
        values = self.sides[1][:, tiles, :, lanes // PACK, :, lanes % PACK].transpose(0, 1)
        scales = self._scales()[:, tiles, :, :, lanes].permute(3, 1, 0, 2)
        return keys, values, scales

    def _put(self, slots: Ints, keys: Tensor, values: Tensor, scales: Tensor) -> None:
        tiles, lanes = self._places(slots)
        words = keys.transpose(0, 1)
        self._key_words()[:, tiles, :, :, lanes] = words.reshape(*words.shape[:-1], -1, PACK)
        self.sides[1][:, tiles, :, lanes // PACK, :, lanes % PACK] = values.transpose(0, 1)
        self._scales()[:, tiles, :, :, lanes] = scales.permute(2, 1, 3, 0)

    def _key_words(self) -> Tensor:
        """[layers, tiles, kv_heads, D / 4, 16, 4]."""
        size, step = self.sides[0].shape[:-1], self.sides[0].stride()
        shape = (*size, self.head_dim // PACK, LANES, PACK)
        return self.sides[0].as_strided(shape, (*step[:-1], LANES * PACK, PACK, 1))

    def _scales(self) -> Tensor:
        """[layers, tiles, kv_heads, 2, 16]: of keys, of values."""
        floats = self.sides[0].view(torch.float32)[..., -SCALES // 4 :]
        step = floats.stride()
        shape, strides = (*floats.shape[:-1], 2, LANES), (*step[:-1], LANES, 1)
        return floats.as_strided(shape, strides, floats.storage_offset())

    def _places(self, slots: Ints) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(slots)
        return at // LANES, at % LANES
