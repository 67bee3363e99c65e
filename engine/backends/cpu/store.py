"""Packed weights on disk: made once, then read or memory-mapped."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.cpu.packed import Arena, Sources
from fastslow.engine.host.files import cache_folder
from fastslow.engine.model.row_file import OpenFile

LAYOUT = 3  # raise it when packed bytes change their meaning
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE = 2 << 20
SMALL = 64 << 20  # packing less than this is so quick that no file is written


def packed_path(folder: Path, format_name: str) -> Path:
    """Where the packed form of a checkpoint folder is kept; the name tells the files' state."""
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    state = hashlib.sha256(str(LAYOUT).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and not path.name.endswith("_report.json"):
            facts = path.stat()
            state.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    name = f"{where}-{format_name}-{state.hexdigest()[:12]}.packed"
    return cache_folder() / "packed" / name


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A model's packed weights in two parts; what lies where is the arena's to say.

    cold: in memory, or left in the file, whose offsets are the arena's.
    """

    hot: NDArray[np.uint8]
    cold: NDArray[np.uint8] | OpenFile

    def address(self, offset: int, size: int) -> int | None:
        """Where bytes of the arena lie in memory; None where they do not. ValueError where they end
        behind it."""
        side, at = (self.hot, 0) if offset < len(self.hot) else (self.cold, len(self.hot))
        if isinstance(side, OpenFile):
            if os.fstat(side.number).st_size < offset + size:
                raise ValueError(f"{side.path} ends before byte {offset + size}")
            return None
        if offset - at + size > len(side):
            raise ValueError(f"packed weights end before byte {offset + size}")
        return int(side.ctypes.data) + offset - at


def load(path: Path, arena: Arena) -> PackedFile | None:
    """The file's bytes; None if it is not there in full.

    Where the system has huge pages, what every step reads is read into those: streaming from them is
    up to a third faster than from a mapped file. Rows of the rest are read as they are needed, since
    mapped ones would stay; what has no rows that lie in one piece is mapped.
    """
    try:
        if path.stat().st_size != arena.nbytes:
            return None
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        if (hot := _huge(arena.hot)) is None:
            return PackedFile(mapped[: arena.hot], mapped[arena.hot :])
        cold = OpenFile(path) if arena.cold_rows else mapped[arena.hot :]
        with path.open("rb", buffering=0) as file:
            view, at = memoryview(hot.data), 0
            while at < arena.hot:
                got = file.readinto(view[at : min(at + (64 << 20), arena.hot)])
                if not got:
                    return None
                at += got
        return PackedFile(hot, cold)
    except OSError:  # gone meanwhile, or another user's
        return None


def _huge(size: int) -> NDArray[np.uint8] | None:
    """Zeros in huge pages, aligned to one; None where the system gives none."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or not HUGE.is_file() or "[never]" in HUGE.read_text():
        return None
    try:
        memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # more than there is: a mapped file can still run, page by page
        return None
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole: NDArray[Any] = np.frombuffer(memory, dtype=np.uint8)
    first = -whole.ctypes.data % PAGE
    return whole[first : first + size]


def create(path: Path, arena: Arena, sources: Sources) -> PackedFile:
    """Pack into a new file and map it; older packings of the same folder go.

    Small models, and all where the cache cannot be written, are packed into memory.
    """
    if arena.nbytes < SMALL:
        return _in_memory(arena, sources)
    made: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pack.", delete=False) as file:
            made = Path(file.name)
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not while packing
                os.posix_fallocate(file.fileno(), 0, arena.nbytes)
            file.truncate(arena.nbytes)
        logger.info("packing weights, once, into {}", path)
        whole = np.memmap(made, dtype=np.uint8, mode="r+")
        arena.write(whole, sources)
        whole.flush()
        del whole
        made.chmod(0o644)
        os.replace(made, path)
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*"):
            if old != path:
                old.unlink(missing_ok=True)  # who has it mapped keeps it
    except OSError as error:
        logger.warning("packed weights cannot be kept, so each start packs anew: {}", error)
    finally:
        if made is not None:
            made.unlink(missing_ok=True)
    found = load(path, arena)
    return _in_memory(arena, sources) if found is None else found


def _in_memory(arena: Arena, sources: Sources) -> PackedFile:
    whole = _huge(arena.nbytes) if arena.nbytes > PAGE else None
    if whole is None:
        # it starts at a page of its own, so it is aligned
        memory = mmap.mmap(-1, max(arena.nbytes, 1))
        whole = np.frombuffer(memory, dtype=np.uint8)
    arena.write(whole, sources)
    return PackedFile(whole[: arena.hot], whole[arena.hot :])
