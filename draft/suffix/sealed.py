"""A safetensors file with a seal: every byte is as it was written, or the file is not read. The seal is a
SHA-256 of the whole file, stored in its header, its own 64 digits counted as zeros."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fastslow.engine.host.files import mapped, parse_object
from fastslow.engine.host.unfinished import unfinished

UNSEALED = b"0" * 64
MARK = b'"seal":"'
PREFIX = 8  # bytes with the length of the header
LONGEST_HEADER = 2**20
DTYPES: dict[str, str] = {"I32": "<i4", "I64": "<i8"}


class Sealed(NamedTuple):
    """A file that was found whole."""

    facts: dict[str, str]  # its metadata, without the seal
    arrays: dict[str, NDArray[Any]]  # views of the mapped file: nothing is copied


def write_sealed(path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]) -> None:
    """Write arrays of int32 or int64 and their metadata beside `path`, then rename: a reader sees the old
    file or the new one, whole."""
    data = bytearray(save(dict(arrays), {**facts, "seal": UNSEALED.decode()}))
    place = _seal_place(data)
    assert place is not None  # it was just made
    data[place : place + len(UNSEALED)] = _digest(data, place)
    with unfinished(path) as made:
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)


def read_sealed(path: Path) -> Sealed:
    """Map a file and check its seal; reads all of it once. ValueError where there is no such file, or it is
    not exactly what was written."""
    memory = mapped(path)
    place = _seal_place(memory)
    if place is None or memory[place : place + len(UNSEALED)] != _digest(memory, place):
        raise ValueError(
            f"{path} is damaged or no sealed file: its contents do not match its checksum"
        )
    try:
        return _views(memory)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} has a header that cannot be understood: {error!s:.99}") from None


def _views(memory: mmap.mmap) -> Sealed:
    base = PREFIX + _header_length(memory)
    header = parse_object(memory[PREFIX:base], "it")
    facts = {str(name): str(value) for name, value in header.pop("__metadata__").items()}
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        dtype = np.dtype(DTYPES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (begin, end, *entry["shape"])):
            raise ValueError(f"tensor {name:.99} has a size that is no whole number")
        count = math.prod(entry["shape"])
        if not 0 <= begin <= end <= len(memory) - base or end - begin != count * dtype.itemsize:
            raise ValueError(f"tensor {name} reaches outside the file")
        if (base + begin) % dtype.itemsize:
            raise ValueError(f"tensor {name} begins between two numbers")
        flat = np.frombuffer(memory, dtype, count, base + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return Sealed({k: v for k, v in facts.items() if k != "seal"}, arrays)


def _header_length(memory: mmap.mmap | bytearray) -> int:
    return int.from_bytes(memory[:PREFIX], "little")


def _seal_place(memory: mmap.mmap | bytearray) -> int | None:
    """Find the place of the seal's digits; None if the header has no room for them."""
    length = _header_length(memory)
    if not 0 < length <= min(LONGEST_HEADER, len(memory) - PREFIX):
        return None
    found = memory.find(MARK, PREFIX, PREFIX + length)
    place = found + len(MARK)
    return place if found >= 0 and place + len(UNSEALED) <= PREFIX + length else None


def _digest(memory: mmap.mmap | bytearray, place: int) -> bytes:
    """The 64 digits, as bytes, for a file whose own digits stand at `place`."""
    digest = hashlib.sha256(memory[:place])
    digest.update(UNSEALED)
    with memoryview(memory) as view, view[place + len(UNSEALED) :] as rest:
        digest.update(rest)
    return digest.hexdigest().encode()
