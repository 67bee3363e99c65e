"""What a benchmark notes beside each sample: the machine, its bandwidth, and who else was running.

Linux only: it reads /proc and /sys.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from ctypes import CDLL
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastslow.engine.backends.cpu import library

PROBE_BYTES = 2**29  # far more than any cache
CONTENDED = 0.05  # others may take this share of the machine before a sample is marked
TICKS = os.sysconf("SC_CLK_TCK")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def physical_cores() -> int:
    """Cores this process may use, two hyper-threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package, core = ((folder / f"{part}_id").read_text() for part in _TOPOLOGY)
        except OSError:  # some virtual machines do not tell
            package, core = "", str(cpu)
        cores.add((package, core))
    return len(cores)


_TOPOLOGY = ("physical_package", "core")


def machine() -> dict[str, Any]:
    """The processor, its vector instructions, memory in GiB, and the system."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": facts.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in facts.get("flags", "").split()],
        "cores": physical_cores(),
        "logical": os.cpu_count(),
        "memory": round(memory / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The checkout's git commit, with "+" if files differ from it; "" outside a checkout."""
    try:
        here, changed = (
            subprocess.run(
                ["git", *command], cwd=Path(__file__).parent, capture_output=True, check=True
            ).stdout.decode()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return here.strip() + ("+" if changed.strip() else "")


@functools.cache
def _block() -> np.ndarray[Any, Any]:
    return np.ones(PROBE_BYTES // 8, dtype=np.int64)


def read_bandwidth(threads: int, passes: int = 5) -> float:
    """GB/s at which so many threads together read memory: the best of some passes.

    The kernels' own reader, if they are built; else numpy sums, which may read slower than the
    memory allows. `reader()` tells which.
    """
    block = _block()
    kernels = _kernels()
    if kernels is not None:
        pointer = block.ctypes.data
        read = kernels.fs_read_bandwidth
        return max(float(read(pointer, block.nbytes, threads)) for _ in range(passes))
    return max(_numpy_pass(block, threads) for _ in range(passes))


def reader() -> str:
    """Who reads in `read_bandwidth`: "kernels" or "numpy"."""
    return "numpy" if _kernels() is None else "kernels"


def _kernels() -> CDLL | None:
    return library.kernels() if library.available() else None


def _numpy_pass(block: np.ndarray[Any, Any], threads: int) -> float:
    parts = np.array_split(block, threads)
    gate = threading.Barrier(threads + 1)

    def read(part: np.ndarray[Any, Any]) -> None:
        gate.wait()
        part.sum()

    readers = [threading.Thread(target=read, args=(part,)) for part in parts]
    for thread in readers:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in readers:
        thread.join()
    return block.nbytes / (time.perf_counter() - started) / 1e9


@dataclass(frozen=True)
class Shares:
    """Who ran while a sample was taken: shares of all logical processors."""

    own: float
    others: float  # other processes, and what the hypervisor gave to other machines
    stolen: float  # of `others`, the hypervisor's part

    @property
    def contended(self) -> bool:
        return self.others > CONTENDED

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"contended": self.contended}


class Watch:
    """Time on the processors from here to `shares`, told apart by process.

    Args:
        own: process ids whose time is the benchmark's own; all their threads count.
    """

    def __init__(self, own: Iterable[int]) -> None:
        self._own = list(own)
        self._before = self._read()

    def shares(self) -> Shares:
        """Shares since this was made. /proc counts in ticks: give it half a second."""
        total, busy, stolen, own = (b - a for a, b in zip(self._before, self._read()))
        total = max(1, total)
        others = max(0, busy - own)
        return Shares(own / total, others / total, stolen / total)

    def _read(self) -> tuple[int, int, int, int]:
        """Ticks so far of everything, of what was busy, of what was stolen, and our own."""
        line = Path("/proc/stat").read_text("utf-8").partition("\n")[0]
        user, nice, system, idle, wait, hard, soft, steal = map(int, line.split()[1:9])
        busy = user + nice + system + hard + soft + steal
        return busy + idle + wait, busy, steal, sum(map(_ticks, self._own))


def sample(
    threads: int, measure: Callable[[], Mapping[str, Any]], own: Iterable[int] = ()
) -> dict[str, Any]:
    """What `measure` gives, with the conditions it ran under.

    `bandwidth` is the better of a probe before and one after. own: processes of the benchmark
    besides this one.
    """
    before = read_bandwidth(threads)
    watch = Watch([os.getpid(), *own])
    measured = measure()
    shares = watch.shares()
    bandwidth = max(before, read_bandwidth(threads))
    return {**measured, "bandwidth": bandwidth, **shares.record()}


def header(threads: int) -> dict[str, Any]:
    """What every file of figures begins with."""
    return {
        "command": sys.argv,
        "commit": commit(),
        "machine": machine(),
        "threads": threads,
        "bandwidth_by": reader(),
    }


def _ticks(pid: int) -> int:
    """Ticks a process has run. Its name may hold blanks, so fields are counted from its end."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: `peak` and `rss` resident, shared files counted; `pss` splits shared pages."""
    found = {}
    for file, names in (
        ("status", {"VmHWM": "peak", "VmRSS": "rss"}),
        ("smaps_rollup", {"Pss": "pss"}),
    ):
        for line in Path(f"/proc/{pid}/{file}").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) / 1024
    return found
