"""The levels that the kernels are compiled for, and what of them this chip has.

setup.py reads this file by its path, before anything is installed: it imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

INFO = Path("/proc/cpuinfo")
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18  # of Linux on x86-64
# What each level adds to those before it, in the compiler's words. avx2 is x86-64-v3, avx512 is x86-64-v4.
ADDED = {
    "plain": "",
    "avx2": "avx2 fma f16c bmi bmi2 lzcnt movbe",
    "avx512": "avx512f avx512bw avx512dq avx512vl avx512cd",
    "vnni": "avx512vnni avx512bf16",
    "amx": "amx-tile amx-int8 amx-bf16",
}
LEVELS = list(ADDED)
SHOWN = {"bmi": "bmi1", "lzcnt": "abm", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}


def _instructions(level: str) -> list[str]:
    upto = LEVELS[: LEVELS.index(level) + 1]
    return [name for each in upto for name in ADDED[each].split()]


def level_flags(level: str) -> list[str]:
    """Return the compiler's flags for a level."""
    return [f"-m{name}" for name in _instructions(level)]


def chip_flags() -> frozenset[str]:
    """Return this x86 chip's flags that Linux lists and switches on; empty on other systems and chips."""
    try:
        lines = INFO.read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def lacking(level: str) -> list[str]:
    """The instructions of a level that this chip does not have, as Linux shows them."""
    chip = chip_flags()
    shown = [SHOWN.get(name, name.replace("-", "_")) for name in _instructions(level)]
    return [name for name in shown if name not in chip]


@cache
def amx_permitted() -> bool:
    """Ask Linux, once for all threads, whether this process may use matrix tiles (AMX)."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None).syscall
    return not call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, ctypes.c_ulong(XTILEDATA))
