"""The C++ compiler and how it is called. setup.py reads this file by its path, as `levels.py`."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import cast

# Contraction is off since a product that is fused in one template and not in another would make
# a row's bits depend on how many rows share its kernel.
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fvisibility=hidden"]
PRECOMPILED = "precompiled.h"  # beside the sources; to read what it names is half of a compile
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HELP = "install a C++ compiler (g++ or clang++; on macOS by xcode-select --install) or point CXX at one, "
HELP += "or install a wheel with kernels inside"
NATIVE = "-march=native"


def find_compiler() -> str:
    """Return CXX, a program without arguments, else c++, g++ or clang++. RuntimeError if none is there."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            return found
    unread = f"CXX={named!r} is no program (arguments are not read)"
    missing = unread if named else "no C++ compiler was found"
    raise RuntimeError(f"{missing}: {HELP}")


@cache
def takes(compiler: str, *flags: str) -> bool:
    """Try a compiler with flags: some clangs know no -march=native, nor does a compiler for another machine."""
    command = [compiler, *flags, "-fsyntax-only", "-x", "c++", "-"]
    no = subprocess.DEVNULL
    return not subprocess.run(command, stdin=no, stdout=no, stderr=no, check=False).returncode


def compile_library(
    command: list[str], sources: list[Path], work: Path, library: Path, *link: str
) -> None:
    """Sources of a folder side by side, then a link. command: the compiler with its flags. work: an empty folder.
    RuntimeError: the compiler's first complaint. However it ends, no compiler runs on."""
    largest = sorted(sources, key=lambda path: (-path.stat().st_size, path.name))
    each = {work / f"{path.stem}.o": ["-c", str(path)] for path in largest}
    header, included, ahead = largest[0].with_name(PRECOMPILED), work / PRECOMPILED, list[str]()
    if header.is_file() and len(sources) > 1:
        shutil.copyfile(header, included)
        _run(command, {Path(f"{included}.gch"): ["-x", "c++-header", str(included)]})
        ahead = ["-include", str(included)]
    try:
        _run([*command, *ahead], each)
    except RuntimeError as error:
        if "PCH" not in str(error):  # of g++, where the place that it wants in memory is taken
            raise
        _run(command, each)
    _run([*command, "-shared"], {library: [*map(str, each), *link]})


def _run(command: list[str], every: dict[Path, list[str]]) -> None:
    """Make files, as many at once as there are cores, and one that waits for a core."""
    running, starting = list[subprocess.Popen[str]](), Lock()
    stop = partial(_stop, running, starting, os.getpid())
    atexit.register(stop)  # a thread in the background is not asked
    no, said = subprocess.DEVNULL, subprocess.PIPE
    start = partial(subprocess.Popen, stdin=no, stdout=no, stderr=said, text=True)
    try:
        for made, some in every.items():
            if len(running) > CORES:
                _end(running)
            whole = [*command, *some, "-o", str(made)]
            with starting:
                running.append(start(whole, start_new_session=True))
        while running:
            _end(running)
    finally:
        atexit.unregister(stop)
        stop()


def _stop(running: list[subprocess.Popen[str]], starting: Lock, owner: int) -> None:
    """End them with all that they started, and have no more started; their temporary files go."""
    if os.getpid() != owner:
        return  # forked meanwhile: they are its parent's
    starting.acquire()
    for compiler in list(running):  # its thread takes those that end off
        with suppress(OSError):
            os.killpg(compiler.pid, signal.SIGTERM)
        compiler.wait()


def _end(running: list[subprocess.Popen[str]]) -> None:
    """Wait for the one that was started first."""
    done = running[0]
    said = done.communicate()[1]
    del running[0]
    if done.returncode:
        lines = [x for x in said.splitlines() if "error" in x] or said.splitlines()
        reason = lines[0] if lines else f"exit code {done.returncode}"
        compiler = cast(list[str], done.args)[0]
        raise RuntimeError(f"{compiler} could not compile the CPU kernels ({reason}): {HELP}")
