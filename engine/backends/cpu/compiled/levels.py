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
ARM = platform.machine().lower() in ("aarch64", "arm64")
# What each level adds to those before it, in the compiler's words. avx2 is x86-64-v3, avx512 is x86-64-v4. What avxvnni
# adds is its own: chips with AVX-512 may lack it.
X86_ADDED = {
    "plain": "",
    "avx2": "avx2 fma f16c bmi bmi2 lzcnt movbe",
    "avxvnni": "avxvnni",
    "avx512": "avx512f avx512bw avx512dq avx512vl avx512cd",
    "vnni": "avx512vnni avx512bf16",
    "amx": "amx-tile amx-int8 amx-bf16",
}
ARM_ADDED = {"plain": "", "neon": "simd", "dotprod": "dotprod", "i8mm": "i8mm bf16"}
ADDED = ARM_ADDED if ARM else X86_ADDED
LEVELS = list(ADDED)
SHOWN = {"bmi": "bmi1", "lzcnt": "abm", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16"}
SHOWN |= {"avxvnni": "avx_vnni", "simd": "asimd", "dotprod": "asimddp"}
APPLE = {"asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16"}  # each chip has NEON


def _instructions(level: str) -> list[str]:
    upto = [n for n in LEVELS[: LEVELS.index(level)] if n != "avxvnni"] + [level]
    return [name for each in upto for name in ADDED[each].split()]


def level_flags(level: str) -> list[str]:
    """Return the compiler's flags for a level."""
    if ARM:  # whose vectors are never off
        return [
            "+".join(["-march=armv8-a", *_instructions(level)]),
            *["-DFASTSLOW_PLAIN"] * (level == "plain"),
        ]
    return [f"-m{name}" for name in _instructions(level)]


def chip_flags() -> frozenset[str]:
    """Return this chip's flags that Linux lists and switches on, and of Apple's the same; empty elsewhere."""
    if ARM and sys.platform == "darwin":
        return frozenset(["asimd", *(name for name, asked in APPLE.items() if _apple_has(asked))])
    try:
        lines = INFO.read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    shown = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(shown, "").split())


def _apple_has(name: str) -> bool:
    found, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    asked, by = f"hw.optional.arm.{name}".encode(), ctypes.byref
    return not ctypes.CDLL(None).sysctlbyname(asked, by(found), by(size), None, 0) and bool(
        found.value
    )


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
