"""The machine: free memory of a device, freed memory back to the system, and the load by other programs
while something is timed."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stand_back() -> None:
    """This thread, and those that it starts, wait for all else from now on."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def give_back(device: torch.device | None = None) -> None:
    """Give freed memory back to the system, where the C library can (glibc), and what torch keeps on a device
    to other programs. For use after something large that happens once, as a parse: takes milliseconds."""
    if device is not None and device.type != "cpu":
        import torch

        torch.get_device_module(device).empty_cache()
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
    """Bytes that are free on a device; for the CPU, what programs can get without swapping, in a container
    below its limit (cgroup v2)."""
    import torch  # not above: what only asks about processors does without

    device = torch.device(device)
    if device.type != "cpu":
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    host, limit = _host_memory(), _cgroup_memory()
    return host if limit is None else min(host, limit)


def whole_memory(device: torch.device | str) -> int:
    """Bytes that a device has, used or free."""
    import torch

    device = torch.device(device)
    if device.type != "cpu":
        return int(torch.get_device_module(device).mem_get_info(device)[1])
    return _all_memory()


def _all_memory() -> int:
    if sys.platform != "win32":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024


def _host_memory() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    half = _all_memory() // 2
    logger.warning("free memory is unknown: half of all memory ({} bytes) is assumed", half)
    return half


def _cgroup_memory() -> int | None:
    """Bytes left below the cgroup's limit; None where there is no limit."""
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


CONTENDED = 0.05  # above this share of the machine taken by others a sample is marked
LEAST = 50  # ticks, on each processor; over fewer a share is too coarse
STAT, OWN = Path("/proc/stat"), Path("/proc/self/stat")


class Watch:
    """Processor time from its making to `others`. Linux only; elsewhere nothing is known."""

    def __init__(self, *pids: int) -> None:
        """pids: of other processes that count as this one."""
        self._own = [OWN, *(Path(f"/proc/{pid}/stat") for pid in pids)]
        self._before = self._ticks()

    def others(self) -> float | None:
        """Share of the machine that other processes, and other machines on it, took. None: unknown, as for
        less than half a second."""
        after = self._ticks()
        if self._before is None or after is None:
            return None
        total, busy, own = (b - a for a, b in zip(self._before, after))
        long = total >= LEAST * (os.cpu_count() or 1)
        return max(0, busy - own) / total if long else None

    def _ticks(self) -> tuple[int, int, int] | None:
        """Ticks so far: all, busy ones, and those of its own processes with all their threads."""
        try:
            line = STAT.read_text("utf-8").partition("\n")[0]
            texts = [path.read_text("utf-8").rpartition(")")[2] for path in self._own]
        except OSError:
            return None
        user, nice, system, idle, wait, hard, soft, steal = map(int, line.split()[1:9])
        busy = user + nice + system + hard + soft + steal
        mine = (sum(map(int, text.split()[11:13])) for text in texts)  # a name may hold blanks
        return busy + idle + wait, busy, sum(mine)


class HomeProcess:
    """Remembers the process that made it."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def here(self) -> bool:
        """True in the process that made it, and not in one that was forked from that."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """RuntimeError with one sentence in any other process."""
        if not self.here:
            raise RuntimeError(
                f"this LLM was made in another process ({self._pid}), from which this one "
                f"({os.getpid()}) was forked without its threads: make a new LLM here"
            )


def _end_parallel_threads() -> None:
    """Give back OpenMP's threads before a fork, which libgomp does not see: a child would wait for them."""
    if (pause := getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)) is not None:
        pause(ctypes.c_int(2))  # omp_pause_hard


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_parallel_threads)
