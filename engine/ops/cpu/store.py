"""Packed weights on disk: made once, then memory-mapped."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.cache import cache_folder
from fastslow.engine.ops.cpu.packed import Arena, Read, ReadBlocks

LAYOUT = 1  # raise it when packed bytes change their meaning
SMALL = 64 << 20  # packing less than this takes no time worth a file


def packed_path(folder: Path, format_name: str) -> Path:
    """Where the packed form of a checkpoint folder is kept; the name tells the files' state."""
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    state = hashlib.sha256(str(LAYOUT).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            facts = path.stat()
            state.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    name = f"{where}-{format_name}-{state.hexdigest()[:12]}.packed"
    return cache_folder() / "packed" / name


def load(path: Path, size: int) -> NDArray[np.uint8] | None:
    """The file, memory-mapped; None if it is not there in full."""
    if not path.is_file() or path.stat().st_size != size:
        return None
    return np.memmap(path, dtype=np.uint8, mode="r")


def create(path: Path, arena: Arena, read: Read, blocks: ReadBlocks) -> NDArray[np.uint8]:
    """Pack into a new file and map it; older packings of the same folder go.

    Small models, and all where the cache cannot be written, are packed into memory.
    """
    if arena.nbytes < SMALL:
        return _in_memory(arena, read, blocks)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pack.", delete=False) as file:
            made = Path(file.name)
            file.truncate(arena.nbytes)
    except OSError as error:
        logger.warning("packed weights cannot be kept, so each start packs anew: {}", error)
        return _in_memory(arena, read, blocks)
    try:
        logger.info("packing weights, once, into {}", path)
        whole = np.memmap(made, dtype=np.uint8, mode="r+")
        arena.write(whole.ctypes.data, read, blocks)
        whole.flush()
        del whole
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*"):
            old.unlink(missing_ok=True)  # who has it mapped keeps it
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    found = load(path, arena.nbytes)
    assert found is not None
    return found


def _in_memory(arena: Arena, read: Read, blocks: ReadBlocks) -> NDArray[np.uint8]:
    memory = mmap.mmap(-1, max(arena.nbytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole: NDArray[Any] = np.frombuffer(memory, dtype=np.uint8)
    arena.write(whole.ctypes.data, read, blocks)
    return whole
