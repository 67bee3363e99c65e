"""Compiling the kernels for this chip, once, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from loguru import logger

from fastslow.engine.host.files import cache_folder

SOURCES = Path(__file__).with_name("kernels")
VARIABLE = "FASTSLOW_KERNELS"
# What the kernels are compiled for. A chip may have AVX-512 without bfloat16 or int8 dots; the
# compiler says which under -march=native, and the sources look at its macros.
LEVELS = {
    "native": ["-march=native"],
    "avx2": ["-march=x86-64-v3"],
    "plain": [],
}
# Contraction is off since a product that is fused in one template and not in another would make
# a row's bits depend on how many rows share its kernel.
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
HELP = "install a C++ compiler (g++ or clang++), or point CXX at one"


def level() -> str:
    """What FASTSLOW_KERNELS asks for: native, avx2, plain, one of them with +sanitize, or off.

    Raises:
        ValueError: it asks for something else.
    """
    wanted = os.environ.get(VARIABLE, "native")
    if wanted != "off" and wanted.removesuffix("+sanitize") not in LEVELS:
        known = ", ".join([*LEVELS, "off"])
        raise ValueError(f"{VARIABLE}={wanted!r} is not one of {known}")
    return wanted


def build(level: str) -> Path:
    """The shared library for a level, compiled on first use (seconds).

    Raises:
        RuntimeError: no compiler, or it failed; the sentence says what to do.
    """
    compiler = find_compiler()
    base = level.removesuffix("+sanitize")
    flags = [*FLAGS, *LEVELS[base], *(SANITIZE if base != level else [])]
    target = cache_folder() / "kernels" / f"{level}-{_key(compiler, flags)}.so"
    if not target.is_file():
        logger.info("compiling the CPU kernels ({}), once, with {}", level, compiler)
        started = time.perf_counter()
        _compile(compiler, flags, target)
        logger.info("compiled in {:.0f} s: {}", time.perf_counter() - started, target)
    return target


def find_compiler() -> str:
    """CXX, else c++, g++ or clang++. RuntimeError if none is there."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    raise RuntimeError(f"no C++ compiler was found: {HELP}")


def _key(compiler: str, flags: list[str]) -> str:
    digest = hashlib.sha256("\0".join([_version(compiler), _chip(), *flags]).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


@cache
def _chip() -> str:
    """What tells chips apart: a cache may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    facts = [x for x in lines if x.startswith(("model name", "flags", "Features"))][:2]
    return "\0".join([platform.machine(), *facts] if facts else [platform.processor()])


def _compile(compiler: str, flags: list[str], target: Path) -> None:
    """All sources side by side, then a link; the library appears only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build.", dir=target.parent) as work:

        def one(source: Path) -> Path:
            made = Path(work) / f"{source.stem}.o"
            _run([compiler, *flags, "-c", str(source), "-o", str(made)])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(one, sorted(SOURCES.glob("*.cpp"))))
        whole = Path(work) / target.name
        _run([compiler, *flags, "-shared", *map(str, objects), "-o", str(whole)])
        whole.rename(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [x for x in done.stderr.splitlines() if "error" in x] or done.stderr.splitlines()
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise RuntimeError(f"{command[0]} could not compile the CPU kernels ({reason}): {HELP}")
