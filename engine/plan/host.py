"""This machine as a device of the planner: probed, since no data sheet knows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch

from fastslow.engine.ops.cpu.library import kernels
from fastslow.engine.plan.device import HERE, Device

READ = 2**29  # bytes, more than the caches hold
SIZE = 1024  # of the square matrices that are multiplied
LONG = 0.25  # seconds of passes, of which the fastest counts: others may run, too


def probe(threads: int | None = None) -> Device:
    """Memory, bandwidth and products of this CPU with so many threads (None = torch's number)."""
    threads = threads or torch.get_num_threads()
    half = _products(torch.bfloat16)
    return Device(
        HERE,
        memory=float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        bandwidth=_bandwidth(threads),
        int8=2 * half,  # VNNI multiplies two int8 where AVX512_BF16 multiplies one bfloat16
        half=half,
    )


def _bandwidth(threads: int) -> float:
    """Bytes per second, by the kernels' own reader where they are built, else by numpy sums."""
    block = np.ones(READ // 8, dtype=np.int64)
    library = kernels()
    if library is None:
        return _best(lambda: block.sum(), block.nbytes)
    read = library.fs_read_bandwidth
    return _best(lambda: read(block.ctypes.data, block.nbytes, threads), block.nbytes)


def _products(dtype: torch.dtype) -> float:
    """Operations per second of a product of two square matrices."""
    a, b = torch.ones(2, SIZE, SIZE, dtype=dtype)
    return _best(lambda: a @ b, 2 * SIZE**3)


def _best(run: Callable[[], object], amount: float) -> float:
    """The best rate of an amount per second."""
    best, begun = 0.0, time.perf_counter()
    while (started := time.perf_counter()) < begun + LONG:
        run()
        best = max(best, amount / (time.perf_counter() - started))
    return best
