"""Memory that is taken when it is written, or just before."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

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
    import torch

    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, max(size, 1), **PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    lazy = np.frombuffer(memory, dtype=np.uint8)[:size]
    return torch.from_numpy(lazy).view(dtype).view(shape)


def take_memory(address: int, size: int) -> None:
    """Take the memory of `size` bytes at an address now, which are written soon, where the system can."""
    if MADVISE is not None:
        start = address & -mmap.PAGESIZE
        MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), POPULATE_WRITE)
