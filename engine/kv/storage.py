"""Where keys and values live: one row per slot, in every layer."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.types import Ints

# Memory of this process alone; Windows has no other kind.
PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros that, on the CPU, take no memory until they are written: most pages may never be.

    Small memory pages, too: a huge one would be filled for one token, and the attention of eight
    short texts took half as long again on them.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, max(size, 1), **PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    lazy = np.frombuffer(memory, dtype=np.uint8)[:size]
    return torch.from_numpy(lazy).view(dtype).view(shape)


def bytes_per_page(
    *, layers: int, kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype
) -> int:
    """Bytes that one page of `page_size` tokens takes: keys and values of all layers."""
    return 2 * layers * page_size * kv_heads * head_dim * dtype.itemsize


class KVStorage:
    """Keys and values, `k[layer]` and `v[layer]`, each [slots, kv_heads, head_dim].

    All layers are views of one allocation, so that a move is one gather and one scatter however
    deep the model is. Rows start as zeros: a kernel may read (and mask) rows never written, and
    zero times an uninitialised NaN would not be zero.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._rows = _zeros((2, layers, slots, kv_heads, head_dim), dtype, device)
        self.k: list[torch.Tensor] = list(self._rows[0].unbind())
        self.v: list[torch.Tensor] = list(self._rows[1].unbind())
        addresses = [[layer.data_ptr() for layer in side] for side in (self.k, self.v)]
        self.pointers: NDArray[np.uint64] = np.array(addresses, dtype=np.uint64)  # [2, layers]

    @property
    def slots(self) -> int:
        """Rows per layer."""
        return self._rows.shape[2]

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token: keys and values of all layers."""
        return self.nbytes // self.slots

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self._rows.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are kept."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where rows are kept."""
        return self._rows.device

    def move(self, src: Ints, dst: Ints) -> None:
        """Copy row src[i] to dst[i] in every layer, as if all rows were read before any is written.

        src, dst: i64 [n] slots. They may overlap; a slot may occur only once in `dst`.
        """
        device = self._rows.device
        rows = self._rows.index_select(2, torch.as_tensor(src, device=device))
        self._rows.index_copy_(2, torch.as_tensor(dst, device=device), rows)
