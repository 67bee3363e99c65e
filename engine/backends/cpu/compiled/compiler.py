"""The C++ compiler and how it is called. setup.py reads this file by its path, as `levels.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Contraction is off since a product that is fused in one template and not in another would make
# a row's bits depend on how many rows share its kernel.
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fvisibility=hidden"]
HELP = "install a C++ compiler (g++ or clang++) or point CXX at one, or install a wheel with kernels inside"


def find_compiler() -> str:
    """CXX, else c++, g++ or clang++. RuntimeError if none is there."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    raise RuntimeError(f"no C++ compiler was found: {HELP}")


def compile_library(
    command: list[str], sources: Path, work: Path, library: Path, *link: str
) -> None:
    """All sources of a folder side by side, then a link. command: the compiler with its flags. work: an empty folder.
    RuntimeError: the compiler's first complaint."""

    def one(source: Path) -> Path:
        made = work / f"{source.stem}.o"
        _run([*command, "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(one, sorted(sources.glob("*.cpp"))))
    _run([*command, "-shared", *map(str, objects), *link, "-o", str(library)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [x for x in done.stderr.splitlines() if "error" in x] or done.stderr.splitlines()
        reason = lines[0] if lines else f"exit code {done.returncode}"
        raise RuntimeError(f"{command[0]} could not compile the CPU kernels ({reason}): {HELP}")
