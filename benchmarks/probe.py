"""What a benchmark notes beside each sample: the bandwidth of the moment, and who else was running.

Linux only: it reads /proc and /sys.
"""

from __future__ import annotations

import functools
import os
import subprocess
import timeit
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastslow.engine.backends.cpu import library
from fastslow.tools.machine import circumstances

PROBE_BYTES = 2**29  # far more than any cache
CONTENDED = 0.05  # others may take this share of the machine before a sample is marked
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def physical_cores() -> int:
    """Cores this process may use, two hyper-threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(
                (folder / "physical_package_id").read_text() + (folder / "core_id").read_text()
            )
        except OSError:  # some virtual machines do not tell
            cores.add(str(cpu))
    return len(cores)


def header() -> dict[str, Any]:
    """What every file of figures begins with: command, versions, commit ("+": files differ from it) and machine."""
    text = Path("/proc/cpuinfo").read_text("utf-8").split("flags", 1)[-1]
    known, facts = text.partition("\n")[0].split(), circumstances()
    facts["machine"] |= {
        "cores": physical_cores(),
        "flags": [flag for flag in FLAGS if flag in known],
        "GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "bandwidth_by": "kernels" if library.available() else "numpy, one thread",
    }
    git = ["git", "-C", str(Path(__file__).parent), "describe"]
    git += ["--always", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return facts | {"commit": subprocess.check_output(git, text=True).strip()}
    return facts | {"commit": ""}


@functools.cache
def _block() -> np.ndarray[Any, Any]:
    return np.ones(PROBE_BYTES // 8, dtype=np.int64)


def read_bandwidth(threads: int, passes: int = 5) -> float:
    """GB/s at which `threads` threads read memory at once: the best of some passes.

    The kernels' own reader, if they are built; else a numpy sum, which reads slower than memory allows.
    """
    block = _block()
    if library.available():
        return max(library.read_bandwidth(block, threads) for _ in range(passes))
    return block.nbytes / min(timeit.repeat(block.sum, number=1, repeat=passes)) / 1e9


def sample(
    threads: int, measure: Callable[[], Mapping[str, Any]], own: Iterable[int] = ()
) -> dict[str, Any]:
    """What `measure` gives, with the conditions it ran under.

    `bandwidth` is the better of a probe before and one after; `own`, `others` and `stolen` (by other virtual
    machines) are shares of all logical processors. /proc counts in ticks: a sample should last half a second.

    Args:
        threads: that read memory.
        measure: takes the sample.
        own: processes of the benchmark besides this one.
    """
    pids = [os.getpid(), *own]
    bandwidth = read_bandwidth(threads)
    before = _ticks(pids)
    measured = measure()
    total, busy, stolen, mine = (b - a for a, b in zip(before, _ticks(pids), strict=True))
    total, others = max(1, total), max(0, busy - mine)
    return {
        **measured,
        "bandwidth": max(bandwidth, read_bandwidth(threads)),
        "own": mine / total,
        "others": others / total,
        "stolen": stolen / total,
        "contended": others / total > CONTENDED,
    }


def _ticks(pids: Iterable[int]) -> tuple[int, int, int, int]:
    """Ticks so far of everything, of what was busy, of what was stolen, and of some processes."""
    line = Path("/proc/stat").read_text("utf-8").partition("\n")[0]
    user, nice, system, idle, wait, hard, soft, steal = map(int, line.split()[1:9])
    busy = user + nice + system + hard + soft + steal
    mine = 0
    for pid in pids:  # a name may hold blanks, so fields are counted from its end
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        mine += int(fields[11]) + int(fields[12])
    return busy + idle + wait, busy, steal, mine


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: `peak` and `rss` resident, shared files counted; `pss` splits shared pages."""
    names = {"VmHWM": "peak", "VmRSS": "rss", "Pss": "pss"}
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{file}").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) / 1024
    return found
