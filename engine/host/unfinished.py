"""Unfinished work in a cache folder, and the sweep of what killed processes left there.

A lock beside the work says that its process lives: the system lets go of it when the process ends, however
it ends. So the work of a living process is never taken, also not of one in another container.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loguru import logger

try:
    import fcntl
except ImportError:  # where there are no such locks, nothing is swept
    fcntl = None  # type: ignore[assignment]

PREFIX = ".unfinished-"
LOCK, WORK = ".lock", ".part"
DAY = 24 * 3600.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A new path beside `target` to make it at, as a file or a folder; the caller renames it when it is
    done. What still lies there at the end goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock, handle = _new_lock(target.parent)
    work = lock.with_suffix(WORK)
    try:
        yield work
    finally:
        _remove(work)
        lock.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder and in those right inside it."""
    try:
        places = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        locks = [lock for place in places for lock in place.glob(f"{PREFIX}*{LOCK}")]
    except OSError:  # not there, or another user's
        return
    swept = [str(lock.with_suffix(WORK)) for lock in locks if _swept(lock)]
    if swept:
        logger.debug("removed what killed processes left unfinished: {}", ", ".join(swept))


def _new_lock(parent: Path) -> tuple[Path, int | None]:
    """A lock that is held, and what holds it; None where the file system has no locks."""
    while True:
        lock = parent / f"{PREFIX}{secrets.token_hex(8)}{LOCK}"
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if _take(lock, handle):
                os.write(handle, _boot())
                return lock, handle
        except OSError:  # without a lock beside it the work is never swept
            os.close(handle)
            lock.unlink(missing_ok=True)
            return lock, None
        os.close(handle)  # a sweep had it first, and leaves an empty lock of unknown age
        lock.unlink(missing_ok=True)


def _take(lock: Path, handle: int) -> bool:
    """Lock an open file. False: another process has it, or it is gone. OSError: there are no locks."""
    if fcntl is None:
        raise OSError("there are no locks")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(lock, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False


def _swept(lock: Path) -> bool:
    """Remove a lock and the work beside it if their process is dead."""
    try:
        handle = os.open(lock, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # gone meanwhile, or another user's
        return False
    try:
        if not _take(lock, handle):
            return False
        # Some shared folders lock on each machine alone: those of others have a day.
        ours = os.read(handle, 64) == _boot() != b""
        if not ours and time.time() - os.fstat(handle).st_mtime < DAY:
            return False
        _remove(lock.with_suffix(WORK))
        lock.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _remove(work: Path) -> None:
    if work.is_dir() and not work.is_symlink():
        shutil.rmtree(work, ignore_errors=True)
    else:
        with suppress(OSError):
            work.unlink()


def _boot() -> bytes:
    """Tells machines, and their starts, apart; empty where it is not known."""
    try:
        return BOOT.read_bytes().strip()
    except OSError:
        return b""
