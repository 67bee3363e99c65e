"""The compiled kernels: made for this chip, once, into the user's cache, and as ctypes sees them.

The structures mirror those of the kernels' headers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from ctypes import (
    POINTER,
    Structure,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

from loguru import logger

from fastslow.engine.host.files import cache_folder
from fastslow.engine.host.unfinished import unfinished

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
TILE = 32
UNREADABLE = 2  # what a step gives back where a file cannot be read
PARTS = ("embed", "qkv", "attention", "out", "gate_up", "experts", "down", "head")


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    """Every type with the names of the members that have it."""
    return [(name, kind) for kind, names in groups for name in names.split()]


class CMatrix(Structure):
    _fields_ = _fields((c_void_p, "tiles bias"), (c_int32, "format inputs outputs unused"))


class CLayer(Structure):
    _fields_ = _fields(
        (c_void_p, "attention_norm mlp_norm"),
        (CMatrix, "qkv out gate_up down router"),
        (c_void_p, "router_scale"),
        (CMatrix, "expert_gate_up expert_down"),
        (c_int64, "expert_bytes"),
    )


class CShape(Structure):
    _fields_ = _fields(
        (c_int32, "layers hidden heads kv_heads head_dim neurons vocabulary experts groups"),
        (c_int32, "expert_neurons"),
        (c_float, "eps"),
        (c_int32, "embedding_format"),
        (c_void_p, "embedding"),
        (c_int64, "embedding_at"),
        (c_int32, "embedding_file unused"),
        (c_void_p, "norm"),
        (CMatrix, "head screen"),
        (c_void_p, "screen_norms"),
        (CMatrix, "fuse entry"),
        (c_void_p, "embedding_norm hidden_norm"),
    )


class StepArgs(Structure):
    _fields_ = _fields(
        (c_int32, "threads rows requests outputs seen_rows features kv_format"),
        (c_void_p, "tokens slots groups cos sin starts contexts context_lengths chains"),
        (c_void_p, "tails tail_starts tail_lengths keys values wanted only_best best logits"),
        (c_void_p, "seen feature_layers feature_values fused hidden"),
    )


class DraftArgs(Structure):
    _fields_ = _fields(
        (c_int32, "threads requests width depth most"),
        (c_void_p, "contexts fresh after features nodes least counts tokens parents scores"),
    )


class CPlaces(Structure):
    _fields_ = _fields((c_void_p, "tokens order buckets"), (c_int32, "ids"))


SIGNATURES = {
    "fs_model_new": (c_void_p, [POINTER(CShape), POINTER(CLayer)]),
    "fs_model_delete": (None, [c_void_p]),
    "fs_step": (c_int, [c_void_p, POINTER(StepArgs)]),
    "fs_part_seconds": (None, [c_void_p, c_int, c_void_p]),
    "fs_experts_read": (c_int64, [c_void_p]),
    "fs_screened": (c_int, [c_void_p]),
    "fs_draft_new": (c_void_p, [POINTER(CShape), POINTER(CLayer), c_void_p, c_int, c_double]),
    "fs_draft_delete": (None, [c_void_p]),
    "fs_draft_open": (c_int64, [c_void_p, c_int64]),
    "fs_draft_fork": (c_int64, [c_void_p, c_int64, c_int64]),
    "fs_draft_close": (c_int, [c_void_p, c_int64]),
    "fs_draft_skip": (c_int, [c_void_p, c_int64, c_int64]),
    "fs_draft_read": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_words": (c_int, [c_void_p, c_int64, c_void_p, c_void_p, c_int]),
    "fs_draft_grow": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_advance": (c_int, [c_void_p, c_void_p, c_void_p, c_int, c_int]),
    "fs_draft_logits": (c_void_p, [c_void_p, c_int64, POINTER(c_int64)]),
    "fs_move": (c_int, [c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int, c_int, c_int, c_int]),
    "fs_find_runs": (None, [POINTER(CPlaces), c_void_p, c_int, c_int, c_int, c_int, c_void_p]),
    "fs_vector_width": (c_int, []),
    "fs_dot_instructions": (c_int, []),
    "fs_read_bandwidth": (c_double, [c_void_p, c_int64, c_int]),
    "fs_tile_bytes": (c_size_t, [c_int, c_int]),
    "fs_pack": (None, [c_int, c_void_p, c_void_p, c_int, c_int]),
    "fs_pack_int8": (None, [c_void_p, c_void_p, c_void_p, c_int, c_int]),
    "fs_pack_q4_1": (None, [c_void_p, c_void_p, c_int, c_int]),
    "fs_product": (c_int, [c_int, c_void_p, c_int, c_int, c_void_p, c_int, c_void_p]),
}


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
    with unfinished(target) as work:
        work.mkdir(mode=0o700)

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


@cache
def kernels() -> ctypes.CDLL:
    """The library for this chip, compiled on first use.

    Raises:
        RuntimeError: it cannot be compiled or loaded; the sentence says what to do.
    """
    try:
        library = ctypes.CDLL(str(build(level())))
    except OSError as error:
        raise RuntimeError(f"the CPU kernels could not be loaded: {error}") from None
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


@cache
def available() -> bool:
    """Whether the kernels run on this machine; if not, one line in the log says what that costs and why."""
    if level() == "off":
        logger.info(
            "the CPU kernels are switched off, plain torch runs instead, several times slower"
        )
        return False
    try:
        kernels()
    except RuntimeError as error:
        logger.warning(
            "plain torch runs instead of the CPU kernels, several times slower: {}", error
        )
        return False
    return True
