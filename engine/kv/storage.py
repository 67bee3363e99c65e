"""Storage of keys and values: one row per slot, in every layer."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.types import Ints

# Memory of this process alone; Windows has no other kind.
PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)

MADVISE = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
POPULATE_WRITE = 23  # of Linux 5.14; older ones refuse it, and nothing is lost


def lazy_zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Zeros that, on the CPU, take no memory until they are written: most pages may never be.

    In small memory pages: a huge one would be filled for one token, and the attention of eight short
    texts took half as long again on them.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, max(size, 1), **PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    lazy = np.frombuffer(memory, dtype=np.uint8)[:size]
    return torch.from_numpy(lazy).view(dtype).view(shape)


@dataclass(frozen=True, slots=True)
class KVShape:
    """slots: rows per layer. head_dim: elements. dtype: in which rows are read and written."""

    layers: int
    slots: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device | str


class KVStorage:
    """Keys and values, `k[layer]` and `v[layer]`, each [slots, kv_heads, head_dim].

    Other storages keep the same rows in another order; `read`, `write` and `move` work in any order. Rows
    start as zeros: a kernel may read (and mask) rows never written, and zero times a NaN is not zero.

    Where attention is data parallel, each of `dp_ranks` holds a part of the slots, one part after the
    other: a request's must all be of one. `share`: how much of a token's bytes the memory that is
    asked for KV has to hold. `slots`: rows per layer that were asked for; some storages round them up. `dtype`: in
    which rows are read and written.
    """

    page_size: ClassVar[int] = 16
    """Tokens of a page whose rows can be read in place."""
    dp_ranks: ClassVar[int] = 1
    share: ClassVar[float] = 1.0
    tile: ClassVar[int] = 1
    """Slots that lie side by side in a layer; 0: pages cannot be taken as they are."""

    @classmethod
    def width(cls, head_dim: int) -> int:
        """Elements that a head's key or value takes."""
        return head_dim

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.slots, self.dtype = shape.slots, shape.dtype
        self._keys, self._values = self._allocate(shape)
        self.device = self._keys.device
        self.k: list[torch.Tensor] = list(self._keys.unbind())
        self.v: list[torch.Tensor] = list(self._values.unbind())
        addresses = [[layer.data_ptr() for layer in side] for side in (self.k, self.v)]
        self.pointers: NDArray[np.uint64] = np.array(addresses, dtype=np.uint64)  # [2, layers]
        self._lists: dict[tuple[int, ...], NDArray[np.uint64]] = {}
        self._unwritten = np.ones(shape.slots, dtype=np.bool_)

    def _allocate(self, s: KVShape) -> tuple[torch.Tensor, torch.Tensor]:
        """All layers' keys and values, one allocation, layers first."""
        rows = lazy_zeros((2, s.layers, s.slots, s.kv_heads, s.head_dim), s.dtype, s.device)
        return rows[0], rows[1]

    def addresses(self, layers: tuple[int, ...]) -> tuple[int, int]:
        """Of the lists in memory of where these layers' keys lie, and their values."""
        if (known := self._lists.get(layers)) is None:
            known = self._lists[layers] = np.ascontiguousarray(self.pointers[:, layers])
        keys: int = known.__array_interface__["data"][0]
        return keys, keys + known.strides[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def memory_dtype(self) -> torch.dtype:
        """In which rows are kept, `dtype` in most storages."""
        return self.dtype

    @classmethod
    def token_bytes(cls, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token takes: keys and values of all layers."""
        return 2 * layers * kv_heads * cls.width(head_dim) * dtype.itemsize

    def populate(self, slots: Ints) -> None:
        """Take the memory of slots i64 [n] that are written soon, of each layer at once where they lie in a row.

        A step's threads would wait for each 4 KiB of it, twice where they read before they write: a quarter of
        the time in which a small model reads a long prompt.
        """
        if MADVISE is None or not self.tile or self.device.type != "cpu":
            return
        if not self._unwritten[slots].any():
            return
        self._unwritten[slots] = False
        sizes = [side.stride(1) * side.itemsize for side in (self._keys, self._values)]
        for run in np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1):
            first, stop = int(run[0]) // self.tile, int(run[-1]) // self.tile + 1
            for size, layers in zip(sizes, self.pointers.tolist()):
                for layer in layers:
                    start = (layer + first * size) & -mmap.PAGESIZE
                    length = ctypes.c_size_t(layer + stop * size - start)
                    MADVISE(ctypes.c_void_p(start), length, POPULATE_WRITE)

    def page(self, page: int, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a page in all layers, in the order and numbers of the memory: views."""
        places = slice(page * page_size // self.tile, (page + 1) * page_size // self.tile)
        return self._keys[:, places], self._values[:, places]

    def read(self, slots: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of keys and values of slots i64 [n]: two of [layers, n, kv_heads, head_dim]."""
        at = torch.as_tensor(slots, device=self.device)
        return self._keys.index_select(1, at), self._values.index_select(1, at)

    def write(self, slots: Ints, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fill slots i64 [n], all different, with rows as `read` gives them."""
        at = torch.as_tensor(slots, device=self.device)
        self._keys.index_copy_(1, at, keys.to(self.dtype))
        self._values.index_copy_(1, at, values.to(self.dtype))

    def move(self, src: Ints, dst: Ints) -> None:
        """Copy row src[i] to dst[i] in every layer, as if all rows were read before any is written.

        src, dst: i64 [n] slots. They may overlap; a slot may occur only once in `dst`.
        """
        self.write(dst, *self.read(src))
