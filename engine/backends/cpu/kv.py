"""Keys and values in the order in which the CPU kernels read them: in the model's dtype, or in int8."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.host.lazy_memory import lazy_zeros
from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.kv.state.storage import KVStorage, Sides
from fastslow.engine.model.ops import quantise_tokens
from fastslow.engine.types import Ints

LANES = 16  # slots of a tile; kernels/tile.h has the same


class Tiles(KVStorage):
    """Rows in tiles of sixteen slots; those of layers that keep alike rows lie together."""

    tile = LANES

    def _tiles(self) -> Iterator[tuple[tuple[int, int, int], RowState]]:
        """Layers, tiles and KV heads of layers that are alike, and what they keep."""
        if self.device.type != "cpu":
            raise ValueError(f"device of tiles is {self.device}, but must be the CPU")
        paired(self.layout, type(self).__name__)
        for row, layers in self._alike().items():
            yield (len(layers), -(-self._room(row) // LANES), row.heads), row


def paired(layout: StateLayout, name: str) -> None:
    """Raise ValueError for rows with values of another size than the keys', which the storage with this name cannot
    keep."""
    for n, row in layout.rows.items():
        if not row.values_in_keys and row.value_dim != row.key_dim:
            raise ValueError(
                f"{name} keeps values as wide as keys, and layer {n} has others: {row}"
            )


def window_args(kv: KVStorage, layers: Sequence[int]) -> dict[str, int]:
    """Fields of `StepArgs`, where layers with windows have pages of their own, each a tile."""
    if (windows := kv.windows) is None or not any(map(kv.pages_of, layers)):
        return {}
    at = library.address("windows", windows.pages, library.INT64, kv.slots // LANES)
    return {"windows": at, "window_count": windows.count}


class TiledStorage(Tiles):
    """Keys and values, `k[layer]` and `v[layer]`, in tiles of sixteen slots.

    A tile of one KV head comes in words of 32 bits, P = 2 bfloat16 or 1 float32. Keys are
    [tiles, kv_heads, D / P, 16, P], so that a query is multiplied with sixteen keys at once and
    they are never transposed; values are [tiles, kv_heads, 16 / P, D, P], so that a word is one place
    of two neighbours. A text whose positions lie in tiles in their order, as pages of 16 tokens
    do, is read in place; any other is gathered. Values that lie in keys are turned as they are read. What is kept
    beside keys lies as they do.

    Raises ValueError for a dtype other than float32 and bfloat16, an odd head_dim, and a device
    other than the CPU.
    """

    def _allocate(self) -> Sides:
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype of tiles is {self.dtype}, but must be float32 or bfloat16")
        pack, found = 4 // self.dtype.itemsize, list[Tensor]()
        for shape, row in self._tiles():
            if odd := [width for width in row.widths if width % 2]:
                raise ValueError(f"head_dim of tiles is {odd[0]}, but must be even")
            sizes = [math.prod(shape) * LANES * width for width in row.widths]
            # the kernels read whole vectors, which may pass the end of the last tile
            whole = lazy_zeros((sum(sizes) + 16 * pack,), self.dtype, self.device)
            each = enumerate(whole[: sum(sizes)].split(sizes))
            found += [_ordered(side, shape, row, n, pack) for n, side in each]
        return tuple(found)

    def _read(self, part: Sides, slots: Ints) -> Sides:
        return tuple(_rows(side, slots, 4 // self.dtype.itemsize) for side in part)

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        for side, rows in zip(part, given, strict=True):
            _put_rows(side, slots, 4 // self.dtype.itemsize, rows.to(self.dtype))

    def move(self, src: Ints, dst: Ints) -> None:
        if not library.available():
            super().move(src, dst)
            return
        count = len(src)
        ways = zip(self._alike().items(), self._parts(src), self._parts(dst))
        for (row, layers), (part, old), (_, new) in ways:
            if row.values_in_keys:
                self._write(part, new, self._read(part, old))
                continue
            read, written = (np.ascontiguousarray(slots, dtype=np.int64) for slots in (old, new))
            keys, values = self.addresses(tuple(layers))
            failed = library.kernels().fs_move(
                keys,
                values,
                len(layers),
                library.address("src", read, library.INT64, count),
                library.address("dst", written, library.INT64, count),
                count,
                part[0].shape[1] * LANES,
                part[1].shape[2],
                part[1].shape[-2],
                self.dtype == torch.float32,
            )
            library.check(failed, f"moving {count} rows of keys and values")


def _ordered(side: Tensor, shape: tuple[int, ...], row: RowState, n: int, pack: int) -> Tensor:
    """Keys, and what is kept beside them, [..., D / pack, 16 * pack]; values [..., 16 / pack, D, pack]."""
    width, values = row.widths[n], n > 0 and not row.values_in_keys
    order = (LANES // pack, width, pack) if values else (width // pack, LANES * pack)
    return side.view(*shape, *order)


def _rows(side: Tensor, slots: Ints, pack: int) -> Tensor:
    """[layers, n, kv_heads, D] of a side as `_ordered` gives it."""
    tiles, lanes = _places(slots)
    if side.ndim == 5:
        found = side.unflatten(-1, (LANES, pack))[:, tiles, :, :, lanes].flatten(-2)
    else:
        found = side[:, tiles, :, lanes // pack, :, lanes % pack]
    turned: Tensor = found.transpose(0, 1)
    return turned


def _put_rows(side: Tensor, slots: Ints, pack: int, given: Tensor) -> None:
    (tiles, lanes), rows = _places(slots), given.transpose(0, 1)
    if side.ndim == 5:
        words = rows.reshape(*rows.shape[:-1], -1, pack)
        side.unflatten(-1, (LANES, pack))[:, tiles, :, :, lanes] = words
    else:
        side[:, tiles, :, lanes // pack, :, lanes % pack] = rows


PACK = 4  # bytes of a word
SCALES = 2 * LANES * 4  # bytes after a tile of keys: float32 scales of its keys, of its values
OFFSET = 128  # bytes are kept unsigned, as dot instructions take them


class Int8Tiles(Tiles):
    """Keys and values in tiles of sixteen slots, each row of a head in int8 with its scale.

    `dtype` is what rows are read and written in. A tile of keys of one KV head is
    [D / 4, 16, 4] bytes and then [2, 16] float32, the scales of the slots' keys and values; a tile of
    values is [16 / 4, D, 4]. So a token takes 2 * (D + 4) bytes a layer and KV head. What is kept beside keys lies
    as they do, and its scales where those of values do.

    Raises ValueError for a head_dim that is no multiple of 4, and a device other than the CPU.
    """

    def _allocate(self) -> Sides:
        if (misfit := self.misfit(self.layout)) is not None:
            raise ValueError(f"keys and values in int8 need {misfit}")
        found = list[Tensor]()
        for shape, row in self._tiles():
            count, sizes = math.prod(shape), [LANES * width for width in row.widths]
            # the kernels read whole vectors, which may pass the end of the last tile
            whole = lazy_zeros((count * (sum(sizes) + SCALES) + 64,), torch.uint8, self.device)
            keys = count * (sizes[0] + SCALES)
            found.append(whole[:keys].view(*shape, sizes[0] + SCALES))
            if sizes[1:]:
                found.append(_ordered(whole[keys:-64], shape, row, 1, PACK))
        return tuple(found)

    @classmethod
    def misfit(cls, layout: StateLayout) -> str | None:
        """Say what it needs that a layout is not; None: it can keep it."""
        paired(layout, cls.__name__)
        widths = (width for row in layout.rows.values() for width in row.widths)
        odd = next((width for width in widths if width % PACK), None)
        return None if odd is None else f"a head_dim that is a multiple of 4, not {odd}"

    @classmethod
    def token_bytes(cls, layout: StateLayout, dtype: torch.dtype) -> int:
        rows = layout.rows.values()
        return sum(x.heads * (sum(x.widths) + 8) for x in rows)

    @property
    def memory_dtype(self) -> torch.dtype:
        return torch.int8

    def _read(self, part: Sides, slots: Ints) -> Sides:
        *sides, scales = _raw(part, slots)
        return tuple(
            ((side.to(torch.int16) - OFFSET).float() * scale[..., None]).to(self.dtype)
            for side, scale in zip(sides, scales)
        )

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        rounded, scales = [], []
        for side in given:
            flat, scale = quantise_tokens(side.reshape(-1, side.shape[-1]))
            rounded.append((flat.to(torch.int16) + OFFSET).to(torch.uint8).view(side.shape))
            scales.append(scale.view(side.shape[:-1]))
        _put(part, slots, *rounded, torch.stack((scales[0], scales[-1])))

    def move(self, src: Ints, dst: Ints) -> None:
        for (part, read), (_, written) in zip(self._parts(src), self._parts(dst)):
            _put(part, written, *_raw(part, read))


def _raw(part: Sides, slots: Ints) -> Sides:
    """Bytes [layers, n, kv_heads, D] of each side, and scales [2, layers, n, kv_heads]."""
    tiles, lanes = _places(slots)
    scales = _scales(part)[:, tiles, :, :, lanes].permute(3, 1, 0, 2)
    return *(_rows(side, slots, PACK) for side in (_key_words(part), *part[1:])), scales


def _put(part: Sides, slots: Ints, *raw: Tensor) -> None:
    tiles, lanes = _places(slots)
    *sides, scales = raw
    for side, rows in zip((_key_words(part), *part[1:]), sides, strict=True):
        _put_rows(side, slots, PACK, rows)
    _scales(part)[:, tiles, :, :, lanes] = scales.permute(2, 1, 3, 0)


def _key_words(part: Sides) -> Tensor:
    """[layers, tiles, kv_heads, D / 4, 16 * 4]."""
    size, step = part[0].shape[:-1], part[0].stride()
    dim = (part[0].shape[-1] - SCALES) // LANES
    shape = (*size, dim // PACK, LANES * PACK)
    return part[0].as_strided(shape, (*step[:-1], LANES * PACK, 1), part[0].storage_offset())


def _scales(part: Sides) -> Tensor:
    """[layers, tiles, kv_heads, 2, 16]: of keys, of values."""
    floats = part[0].view(torch.float32)[..., -SCALES // 4 :]
    step = floats.stride()
    shape, strides = (*floats.shape[:-1], 2, LANES), (*step[:-1], LANES, 1)
    return floats.as_strided(shape, strides, floats.storage_offset())


def _places(slots: Ints) -> tuple[Tensor, Tensor]:
    at = torch.as_tensor(slots)
    return at // LANES, at % LANES
