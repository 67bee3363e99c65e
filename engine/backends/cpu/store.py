"""Packed weights on disk: made once, then read or memory-mapped, and read again only if every byte is as it was.

A packing is named by the contents of what it was made from. Reading all of a checkpoint at every start would
take as long as the rest of loading, so a file's digest is kept with its identity, and read anew where the
identity is another one: inode, size, and both times, of which an edit that puts one back changes the other.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread, get_native_id
from typing import Any, BinaryIO

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.cpu.formats import Sources
from fastslow.engine.backends.cpu.library import checksum
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.checkpoint.checkpoint import BLOCKS
from fastslow.engine.checkpoint.row_file import OpenFile
from fastslow.engine.host.files import cache_folder, read_object, shown
from fastslow.engine.host.gguf_file import gguf_files, is_gguf
from fastslow.engine.host.unfinished import unfinished

PACKED, DIGESTS, SUFFIX = "packed", "digests", ".packed"
LIMIT_VARIABLE = "FASTSLOW_CACHE_LIMIT"  # gigabytes
USUAL_LIMIT = 100.0  # gigabytes, where half of the disk is more
GB = 10**9


@dataclass(frozen=True, slots=True)
class Packing:
    """A file of packed weights, made from `model` where that is known. size: bytes. used: when it was used last,
    seconds since 1970."""

    path: Path
    model: Path | None
    format: str
    size: int
    used: float


def packings() -> list[Packing]:
    """All of them, the one used last in front."""
    every = []
    for path in (cache_folder() / PACKED).glob(f"*{SUFFIX}"):
        where, _, rest = path.name.partition("-")
        try:
            facts = path.stat()
            model = read_object(cache_folder() / DIGESTS / f"{where}.json").get("model")
        except (OSError, ValueError):  # gone meanwhile; or a record that cannot be read
            continue
        found, form = Path(model) if isinstance(model, str) else None, rest.rpartition("-")[0]
        every.append(Packing(path, found, form, facts.st_size, facts.st_atime))
    return sorted(every, key=lambda packing: -packing.used)


def limit() -> int:
    """Bytes that all packings may take: FASTSLOW_CACHE_LIMIT in GB, else 100 GB or half of the disk's free
    space with what they take now, whichever is less. ValueError for a limit that is no number above 0."""
    given = os.environ.get(LIMIT_VARIABLE)
    if given is None:
        ours, folder = sum(packing.size for packing in packings()), cache_folder().absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return int(min(USUAL_LIMIT * GB, (shutil.disk_usage(there).free + ours) / 2))
    try:
        most = float(given)
    except ValueError:
        most = 0.0
    if not 0 < most < 1e9:
        raise ValueError(f"{LIMIT_VARIABLE}={shown(given)} must be a number of gigabytes above 0")
    return int(most * GB)


def shrink(keep: Path) -> None:
    """Remove the packings used longest ago until all fit the limit; `keep` stays."""
    most, every = limit(), packings()
    total, removed = sum(packing.size for packing in every), []
    for packing in reversed(every):
        if total > most and packing.path != keep:
            packing.path.unlink(missing_ok=True)  # a process that has it mapped keeps it
            total -= packing.size
            removed.append(packing.model.name if packing.model else packing.path.name)
    if removed:
        said = "packed weights used longest ago were removed for the limit of {:.1f} GB: {}"
        logger.info(said, most / GB, ", ".join(removed))


LAYOUT = 6  # raise it when packed bytes change their meaning
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE = 2 << 20
SMALL = 64 << 20  # packing less than this is so quick that no file is written
PIECE = 4 << 20  # bytes that are read, and added to a sum while they are in the caches
SEAL = 16  # bytes of the sum after the packed ones
_writing: dict[Path, tuple[Thread, PackedFile]] = {}  # what threads write, by file
SETTLED = 2 * 10**9  # nanoseconds after which another edit of a file gets another time


def packed_path(folder: Path, format_name: str, arena: Arena) -> Path | None:
    """Return the path of a checkpoint's packed form, named by its contents; None where it is too small."""
    if arena.nbytes < SMALL:
        return None
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    record = cache_folder() / DIGESTS / f"{where}.json"
    known = _known(record)
    found = {path.name: _digest(path, known.get(path.name)) for path in _sources(folder)}
    if found != known:
        _keep(record, {"model": str(folder.resolve()), "files": found})
    state = json.dumps([LAYOUT, [[name, entry[-1]] for name, entry in found.items()]])
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return cache_folder() / PACKED / f"{where}-{format_name}-{digest}{SUFFIX}"


def _sources(folder: Path) -> list[Path]:
    """List the files that a packing is made from."""
    if is_gguf(folder):
        return gguf_files(folder)
    files = (p for p in folder.iterdir() if p.is_file() and not p.name.endswith("_report.json"))
    kinds = (".safetensors", ".json", Path(BLOCKS).suffix)
    return sorted(path for path in files if path.suffix in kinds)


def _known(record: Path) -> dict[str, list[Any]]:
    """File name -> identity and digest; what cannot be read is not known."""
    try:
        files = read_object(record).get("files")
    except ValueError:
        return {}
    return files if isinstance(files, dict) else {}


def _digest(path: Path, known: object) -> list[Any]:
    """A file's identity, and the digest of its contents."""
    with path.open("rb", buffering=0) as file:
        facts = os.fstat(file.fileno())
        times = [facts.st_mtime_ns, facts.st_ctime_ns]
        identity = [facts.st_dev, facts.st_ino, facts.st_size, *times]
        if isinstance(known, list) and known[:-1] == identity:
            return known
        total, piece = None, np.empty(min(PIECE, max(facts.st_size, 1)), dtype=np.uint8)
        while got := file.readinto(piece.data):
            total = checksum(piece[:got], total)
    if time.time_ns() - max(times) < SETTLED:  # an edit in this moment would have the same times
        identity[-1] = 0
    return [*identity, "" if total is None else total.tobytes().hex()]


def _keep(record: Path, found: dict[str, Any]) -> None:
    try:
        with unfinished(record) as made:
            made.write_text(json.dumps(found), "utf-8")
            os.replace(made, record)
    except OSError as error:
        logger.debug("digests of a checkpoint cannot be kept: {}", error)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A model's packed weights as the arena lays them. cold: in memory, or left in the file."""

    hot: NDArray[np.uint8]
    cold: NDArray[np.uint8] | OpenFile

    def address(self, offset: int, size: int) -> int | None:
        """Return the address of bytes of the arena in memory; None where they are read from a file."""
        side, at = (self.hot, 0) if offset < len(self.hot) else (self.cold, len(self.hot))
        if isinstance(side, OpenFile):
            if os.fstat(side.number).st_size < offset + size:
                raise ValueError(f"{side.path} ends before byte {offset + size}")
            return None
        if offset - at + size > len(side):
            raise ValueError(f"packed weights end before byte {offset + size}")
        return int(side.ctypes.data) + offset - at


def load(path: Path | None, arena: Arena) -> PackedFile | None:
    """The file's bytes, or those that a thread writes into it; None if it is not there, or with a line in the log if
    it is damaged.

    Where the system has huge pages, what every step reads is read into those: streaming from them is
    up to a third faster than from a mapped file. Rows of the rest are read as they are needed, since
    mapped ones would stay; what has no rows that lie in one piece is mapped.
    """
    if path is None:
        return None
    if (written := _writing.get(path)) is not None:
        return written[1]
    try:
        size = path.stat().st_size
        mapped = np.memmap(path, dtype=np.uint8, mode="r") if size == arena.nbytes + SEAL else None
        hot = None if mapped is None else huge_pages(arena.hot)
        if mapped is not None and _sum(path, arena.nbytes, hot) == mapped[arena.nbytes :].tobytes():
            if hot is None:
                return PackedFile(mapped[: arena.hot], mapped[arena.hot : arena.nbytes])
            facts = path.stat()  # the time of reading says when it was used last
            os.utime(path, ns=(time.time_ns(), facts.st_mtime_ns))
            cold = OpenFile(path) if arena.cold_rows else mapped[arena.hot : arena.nbytes]
            return PackedFile(hot, cold)
    except (OSError, ValueError):  # gone meanwhile, or another user's
        return None
    logger.warning("packed weights {} are damaged: packed anew", path)
    return None


def _sum(path: Path, size: int, hot: NDArray[np.uint8] | None) -> bytes:
    """The sum of a file's packed bytes, while those of `hot` are read into it; of b"" where some are missing."""
    total, room = np.zeros(2, dtype=np.uint64), np.empty(PIECE, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        for at in range(0, size, PIECE):
            piece = room[: size - at]
            if hot is not None and at + PIECE <= len(hot):
                piece = hot[at : at + PIECE]
            filled = 0
            while filled < len(piece):
                if not (got := file.readinto(piece.data[filled:])):
                    return b""
                filled += got
            if hot is not None and at < len(hot) < at + PIECE:
                hot[at:] = piece[: len(hot) - at]
            total = checksum(piece, total)
    return total.tobytes()


def huge_pages(size: int) -> NDArray[np.uint8] | None:
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


def finish_writing() -> None:
    """Wait until the packed weights of this process are in their files: until then they stay in memory."""
    for thread, _ in list(_writing.values()):
        if thread.is_alive():  # else it starts in this moment, for another model
            thread.join()


def create(
    path: Path | None, arena: Arena, sources: Sources, now: Callable[[], Path | None] | None = None
) -> PackedFile:
    """Pack, and keep it in a new file; older packings of the same folder go.

    Where the system has huge pages, a thread writes the file while the weights already run from those; else it is
    mapped. Small models, and all where the cache cannot be written, are packed into memory. now: the path that the
    folder's contents ask for; it is another one if they changed while they were packed. None: they cannot change.
    """
    if path is None:
        return _in_memory(arena, sources)
    limit()  # refuses what is no number before anything is packed
    logger.info("packing weights, once, into {}", path)
    if (whole := huge_pages(arena.nbytes)) is not None:
        arena.write(whole, sources)

        def write(file: BinaryIO) -> None:
            if sys.platform == "linux":  # of this thread alone: answers go before it
                os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)
            file.write(whole.data)

        packed = PackedFile(whole[: arena.hot], whole[arena.hot :])
        thread = Thread(target=_keep_packed, args=(path, len(whole), write, now))
        _writing[path] = thread, packed
        try:
            thread.start()
        except RuntimeError as error:  # no more threads here
            _writing.pop(path, None)
            logger.warning("packed weights cannot be kept, so each start packs anew: {}", error)
        return packed
    _keep_packed(path, arena.nbytes, partial(arena.save, sources=sources), now)
    found = load(path, arena)
    return _in_memory(arena, sources) if found is None else found


def _keep_packed(
    path: Path, size: int, write: Callable[[BinaryIO], None], now: Callable[[], Path | None] | None
) -> None:
    """The file appears only when it is whole, with its sum; one line in the log where it cannot be."""
    work = ExitStack()
    try:
        made = work.enter_context(unfinished(path))
        with made.open("x+b") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not while packing
                os.posix_fallocate(file.fileno(), 0, size + SEAL)
            file.truncate(size + SEAL)
            write(file)
            file.flush()
            file.seek(size)
            file.write(_sum(made, size, None))
        made.chmod(0o644)
        if now is not None and now() != path:
            raise OSError("the checkpoint was changed while it was packed")
        os.replace(made, path)
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*"):
            if old != path:
                old.unlink(missing_ok=True)  # a process that has it mapped keeps it
        shrink(path)
    except (OSError, ValueError) as error:  # the disk; a part of a split file that is gone
        logger.warning("packed weights cannot be kept, so each start packs anew: {}", error)
    finally:
        work.close()
        _writing.pop(path, None)


def _in_memory(arena: Arena, sources: Sources) -> PackedFile:
    whole = huge_pages(arena.nbytes) if arena.nbytes > PAGE else None
    if whole is None:
        # it starts at a page, so it is aligned
        memory = mmap.mmap(-1, max(arena.nbytes, 1))
        whole = np.frombuffer(memory, dtype=np.uint8)
    arena.write(whole, sources)
    return PackedFile(whole[: arena.hot], whole[arena.hot :])
