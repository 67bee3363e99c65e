"""The compiled kernels as ctypes sees them, and the one place where numbers and addresses pass into C.

ctypes cuts whole numbers that do not fit and takes any address. So structures and functions are declared with
types that refuse such numbers, and arrays pass through `address`. The kernels check what refers to other
things (tokens, slots, rows, shapes) themselves. The structures mirror those of the kernels' headers.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
)
from functools import cache
from typing import Any

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.cpu.compiled.compiler import find_compiler
from fastslow.engine.backends.cpu.compiled.kernel_cache import (
    FILE,
    KV,
    SOURCES,
    VARIABLE,
    build,
    level,
    load,
    prebuilt,
)
from fastslow.engine.backends.cpu.compiled.structures import (
    CLayer,
    CPlaces,
    CShape,
    DraftArgs,
    Int32,
    Int64,
    StepArgs,
)
from fastslow.engine.backends.cpu.pieces.orders import TILE
from fastslow.engine.host.files import shown

__all__ = ["TILE", "VARIABLE", "build", "find_compiler", "level", "prebuilt"]  # beside what is here
# Measured with 135 M parameters in bfloat16, one answer, two cores of an Intel Xeon: 5.4 to 6.3 times.
SLOWER = "plain torch runs instead of the CPU kernels, about 6 times slower"
OWN = 0, 1, 2, 3, 12  # numbers of the formats that no part has, see kernels/format.h
NO_MEMORY, UNREADABLE, REFUSED = 1, 2, 3  # what the kernels' functions return; see check.h
INT64, INT32, INT8, UINT64, UINT8, BOOL, FLOAT32, FLOAT64 = map(
    np.dtype,
    (np.int64, np.int32, np.int8, np.uint64, np.uint8, np.bool_, np.float32, np.float64),
)
# The least and the most that the kernels take, by the names of limits.h.
LIMITS = {
    name: (int(least), int(most))
    for name, least, most in re.findall(
        r'\{"(\w+)", (\d+), (\d+)\}', (SOURCES / "limits.h").read_text("utf-8")
    )
}


def check_limits(**sizes: int) -> None:
    """ValueError for a size that the kernels have no room for."""
    for name, value in sizes.items():
        least, most = LIMITS[name]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name}={shown(value)} must be a whole number in {least}..{most}")


TEXT = [c_void_p, Int64]  # a head's handle and the number of one of its texts
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fs_refusal": (c_char_p, []),
    "fs_model_new": (c_int, [POINTER(CShape), POINTER(CLayer), POINTER(c_void_p)]),
    "fs_model_delete": (None, [c_void_p]),
    "fs_step": (c_int, [c_void_p, POINTER(StepArgs)]),
    "fs_screened": (c_int, [c_void_p]),
    "fs_draft_new": (
        c_int,
        [POINTER(CShape), POINTER(CLayer), c_void_p, Int64, c_void_p, POINTER(c_void_p)],
    ),
    "fs_draft_delete": (None, [c_void_p]),
    "fs_draft_open": (c_int64, TEXT),
    "fs_draft_fork": (c_int64, [*TEXT, Int64]),
    "fs_draft_close": (c_int, TEXT),
    "fs_draft_skip": (c_int, [*TEXT, Int64]),
    "fs_draft_read": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_words": (c_int, [*TEXT, c_void_p, c_void_p, Int32]),
    "fs_draft_grow": (c_int, [c_void_p, POINTER(DraftArgs)]),
    "fs_draft_advance": (c_int, [c_void_p, c_void_p, c_void_p, Int32, Int32]),
    "fs_draft_logits": (c_int, [*TEXT, POINTER(c_void_p), POINTER(c_int64)]),
    "fs_move": (
        c_int,
        [c_void_p, c_void_p, Int32, c_void_p, c_void_p, Int32, Int64, Int32, Int32, Int32],
    ),
    "fs_find_runs": (None, [POINTER(CPlaces), c_void_p, Int32, Int32, Int32, Int32, c_void_p]),
    "fs_checksum": (None, [c_void_p, Int64, c_void_p]),
    "fs_vector_width": (c_int, []),
    "fs_dot_instructions": (c_int, []),
    "fs_read_bandwidth": (c_double, [c_void_p, Int64, Int32]),
    "fs_add_format": (None, [Int32, c_void_p]),
    "fs_add_attention": (None, [Int32, c_void_p]),
    "fs_tile_bytes": (c_size_t, [Int32, Int32]),
    "fs_packs": (c_int, [Int32]),
    "fs_pack": (None, [Int32, c_void_p, c_void_p, Int32, Int32]),
    "fs_pack_int8": (None, [c_void_p, c_void_p, c_void_p, Int32, Int32]),
    "fs_block": (None, [Int32, POINTER(c_int), POINTER(c_int)]),
    "fs_pack_blocks": (None, [Int32, c_void_p, c_void_p, Int32, Int32]),
    "fs_unpack": (None, [Int32, c_void_p, Int32, Int32, c_void_p]),
    "fs_product": (c_int, [Int32, c_void_p, Int32, Int32, c_void_p, Int32, c_void_p]),
}


@cache
def kernels() -> ctypes.CDLL:
    """The library for this chip, compiled on first use, or RuntimeError: what to do."""
    library = load(level())
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def kernels_with(form: int) -> ctypes.CDLL:
    """The library, with a format that another part may have."""
    if form not in OWN:
        _add(FILE, "format", form)
    return kernels()


def add_attention(kv_format: int) -> None:
    """Have keys and values in a format attended over. The library itself has bfloat16."""
    if kv_format != 1:
        _add(KV, "attention", kv_format)


@cache
def _add(part: str, kind: str, form: int) -> None:
    find = getattr(load(level(), part), f"fs_{part[1:]}_{kind}")
    find.restype = c_void_p
    getattr(kernels(), f"fs_add_{kind}")(form, find(form))


def check(failed: int, action: str) -> None:
    """Raise what a number that the kernels returned stands for: ValueError, OSError or MemoryError."""
    if failed == REFUSED:
        raise ValueError(f"{action}: {kernels().fs_refusal().decode()}")
    if failed == UNREADABLE:
        raise OSError(f"{action}: the embedding cannot be read from its file")
    if failed:
        raise MemoryError(f"{action}: there is no memory left, or no thread")


def addresses(
    dtype: np.dtype[Any], arrays: Mapping[str, tuple[NDArray[Any], int]]
) -> dict[str, int]:
    """Return the addresses of arrays' memory by name, in a quarter of the time of `array.ctypes.data`; ValueError unless
    each holds its number of elements of a dtype, one after the other."""
    found: dict[str, int] = {}
    for name, (array, size) in arrays.items():
        # numpy has one object for each of these dtypes, and comparing objects is quicker
        same = array.dtype is dtype or array.dtype == dtype
        if not same or array.size != size or not array.flags.c_contiguous:
            how = "" if array.flags.c_contiguous else ", with gaps"
            raise ValueError(
                f"{name} must be {size} of {dtype}, not {array.size} of {array.dtype}{how}"
            )
        found[name] = array.__array_interface__["data"][0] if size else 0
    return found


def address(name: str, array: NDArray[Any], dtype: np.dtype[Any], size: int) -> int:
    """The same of one array."""
    return addresses(dtype, {name: (array, size)})[name]


def tensor_address(name: str, tensor: torch.Tensor, size: int) -> int:
    """The same of `size` floats in torch, on the CPU."""
    if tensor.dtype != torch.float32 or tensor.numel() != size or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be {size} of float32, not {tensor.numel()} of {tensor.dtype}"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")
    return tensor.data_ptr()


def tile_bytes(form: int, inputs: int) -> int:
    """Bytes of a tile of 32 outputs in a format."""
    check_limits(inputs=inputs)
    return int(kernels_with(form).fs_tile_bytes(form, inputs))


def _room(into: NDArray[np.uint8], form: int, rows: NDArray[Any], inputs: int) -> int:
    """Return the address of the memory that rows are packed to: whole tiles, on a cache line."""
    size = -(-len(rows) // TILE) * tile_bytes(form, inputs)
    at = address("memory of packed rows", into[:size], UINT8, size)
    if at % 64:
        raise ValueError("memory of packed rows must begin on a cache line")
    return at


def packs(form: int) -> bool:
    """Tell whether floats are packed in a format; else it has numbers of a file's only."""
    return bool(kernels_with(form).fs_packs(form))


def pack(into: NDArray[np.uint8], form: int, rows: NDArray[np.float32]) -> None:
    """Pack rows [outputs, inputs] in a format."""
    outputs, inputs = rows.shape
    if not packs(form):
        raise ValueError(f"format {form} has numbers of a file's only: floats are not packed in it")
    at = _room(into, form, rows, inputs)
    kernels().fs_pack(form, at, address("rows", rows, FLOAT32, outputs * inputs), outputs, inputs)


def pack_int8(
    into: NDArray[np.uint8], form: int, rows: NDArray[np.int8], scales: NDArray[np.float32]
) -> None:
    """Pack rows [outputs, inputs] in int8 with their scales, bit for bit."""
    outputs, inputs = rows.shape
    at = _room(into, form, rows, inputs)
    weights = address("rows in int8", rows, INT8, outputs * inputs)
    kernels().fs_pack_int8(
        at, weights, address("scales", scales, FLOAT32, outputs), outputs, inputs
    )


@cache
def block_of(form: int) -> tuple[int, int]:
    """Inputs and bytes of a block of GGUF that a format is packed from; zeros where there is none."""
    inputs, size = c_int(), c_int()
    kernels_with(form).fs_block(form, ctypes.byref(inputs), ctypes.byref(size))
    return inputs.value, size.value


def block_bytes(form: int, inputs: int) -> int:
    """Bytes of a row of blocks."""
    step, size = block_of(form)
    if not step:
        raise ValueError(f"format {form} has no blocks")
    if inputs % step:
        raise ValueError(f"inputs={inputs} must be a multiple of {step}, which a block has")
    return inputs // step * size


def pack_gguf(
    into: NDArray[np.uint8],
    form: int,
    parts: Sequence[NDArray[np.uint8]],
    order: NDArray[np.int64],
    inputs: int,
) -> None:
    """Pack rows of blocks, bit for bit. parts: each [outputs, bytes of a row], one below the other. order: which of
    all their rows, whole tiles of them; -1 is a row of zeros."""
    size = block_bytes(form, inputs)
    found = [address("rows of blocks", part, UINT8, len(part) * size) for part in parts]
    at = _room(into, form, order, inputs)
    rows = np.concatenate([first + size * np.arange(len(p)) for first, p in zip(found, parts)])
    if len(order) % TILE or (len(order) and not -1 <= order.min() <= order.max() < len(rows)):
        raise ValueError(f"{len(order)} rows to pack are not whole tiles of {len(rows)} rows")
    picked = np.where(order < 0, 0, rows[order]).astype(np.uint64)
    kernels().fs_pack_blocks(
        form, at, address("rows", picked, UINT64, len(order)), len(order), inputs
    )


def unpack(tiles: NDArray[np.uint8], form: int, outputs: int, inputs: int) -> NDArray[np.float32]:
    """Return the numbers of packed tiles, [outputs, inputs]."""
    out = np.empty((outputs, inputs), dtype=np.float32)
    at = _room(tiles, form, out, inputs)
    kernels().fs_unpack(form, at, outputs, inputs, address("floats", out, FLOAT32, out.size))
    return out


def checksum(
    data: NDArray[np.uint8], before: NDArray[np.uint64] | None = None
) -> NDArray[np.uint64]:
    """A sum of bytes [2] that shows damage and edits, at the speed of memory; `before`: of those before them."""
    found = np.zeros(2, dtype=np.uint64) if before is None else before.copy()
    at = address("data", data, UINT8, data.size)
    kernels().fs_checksum(at, data.size, address("sum", found, UINT64, 2))
    return found


def read_bandwidth(block: NDArray[Any], threads: int) -> float:
    """GB/s at which this number of threads reads memory."""
    at = address("block", block, block.dtype, block.size)
    return float(kernels().fs_read_bandwidth(at, block.nbytes, max(threads, 1)))


@cache
def available() -> bool:
    """Tell whether the kernels run on this machine; if not, one line in the log says what that costs and why."""
    if level() == "off":
        logger.info("{}: {}=off", SLOWER, VARIABLE)
        return False
    try:
        kernels()
    except RuntimeError as error:
        logger.warning("{}: {}", SLOWER, error)
        return False
    return True
