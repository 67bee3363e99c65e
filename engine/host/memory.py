"""The machine's memory: how much a device could still give, and giving back what was freed."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from loguru import logger


def give_back() -> None:
    """Give the system what the heap keeps for later, where the C library can (glibc).

    For the end of something large that happens once: a parse leaves tens of MB of freed pieces
    behind, which nothing of the same sizes asks for again. Takes a few milliseconds.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library; Windows
        return None


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device | str) -> int:
    """Bytes that are free on a device; for the CPU, what programs can get without swapping.

    In a container the CPU's free memory ends at the container's (cgroup v2) limit.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    host, limit = _host_memory(), _cgroup_memory()
    return host if limit is None else min(host, limit)


def _host_memory() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    logger.warning("free memory is unknown here: half of all memory ({} bytes) is assumed", half)
    return half


def _cgroup_memory() -> int | None:
    """What is left below the cgroup's limit; None where there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text()
    except OSError:
        return None
    if limit == "max":
        return None
    counts = dict(line.split() for line in statistics.splitlines())
    reclaimable = int(counts.get("inactive_file", 0))  # the page cache counts as used
    return max(0, int(limit) - used + reclaimable)
