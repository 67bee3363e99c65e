"""What a card can do, from data sheets, and what this machine can, by a probe. `docs/planner.md` has the sources."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fastslow.engine.backends.cpu.library import available, read_bandwidth
from fastslow.engine.params import nearest

GIB = 2**30
THIS_CPU = "this-cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """One card: bytes, bytes per second, and operations per second of matrix products, a multiplication and
    an addition as two."""

    name: str  # as the command line has it
    memory: float
    bandwidth: float  # of its memory
    int8: float
    half: float  # products in 16 bits
    peer: float | None = None  # that it sends to one other card; None = there is no other
    mesh: bool = False  # whether it has such a link to each of the others at once

    def link(self, cards: int) -> float:
        """Bytes per second that a card sends in a collective of `cards`; ValueError: there are no links."""
        if cards == 1:
            return float("inf")
        if self.peer is None:
            raise ValueError(f"cards={cards}: {self.name} is alone, so it must be 1")
        return self.peer * (cards - 1 if self.mesh else 1)


DEVICES = {
    device.name: device
    for device in (
        # Ascend 910B, 64 GiB; HCCS gives 28 GB/s in each direction to each of seven peers.
        Device("800i-a2", 64 * GIB, 1.6e12, 560e12, 280e12, 28e9, mesh=True),
        # Two 310P on a card; cards meet over PCIe 4.0 x16.
        Device("300i-duo", 96 * GIB, 408e9, 280e12, 140e12, 32e9),
        # SXM5, dense figures; NVLink 4 through a switch, 450 GB/s in each direction.
        Device("h100", 80e9, 3.35e12, 1979e12, 989e12, 450e9),
    )
}


def find_device(name: str) -> Device:
    """The device of a name; "this-cpu" is probed, which takes a second. ValueError for an unknown one."""
    if name == THIS_CPU:
        return probe()
    if name not in DEVICES:
        raise ValueError(f"device={name!r} is unknown{nearest(name, (*DEVICES, THIS_CPU))}")
    return DEVICES[name]


READ = 2**29  # bytes, more than the caches hold
SIZE = 1024  # of the square matrices that are multiplied
LONG = 0.25  # seconds of passes; the fastest counts, since others may run too


def probe() -> Device:
    """Memory, bandwidth and products of this CPU with torch's number of threads."""
    half = _products(torch.bfloat16)
    return Device(
        THIS_CPU,
        memory=float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        bandwidth=_bandwidth(torch.get_num_threads()),
        int8=2 * half,  # VNNI multiplies two int8 where AVX512_BF16 multiplies one bfloat16
        half=half,
    )


def _bandwidth(threads: int) -> float:
    """Bytes per second, by the kernels' own reader where they are built, else by numpy sums."""
    block = np.ones(READ // 8, dtype=np.int64)
    if not available():
        return _best(lambda: block.sum(), block.nbytes)
    return _best(lambda: read_bandwidth(block, threads), block.nbytes)


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
