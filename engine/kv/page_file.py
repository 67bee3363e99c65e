"""A file for cached pages that memory has no room for."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.kv.prefix import Key
from fastslow.engine.kv.state.storage import KVStorage


class PageFile:
    """Pages by key, bit for bit as they were in the storage; the least recently used ones make room.

    The file has no name: the system frees it when the process ends, however it ends, and no other user
    finds the texts in it. It is read and written, not mapped: a full disk is then an error and no signal.

    Raises ValueError where the storage's pages cannot be taken as they are, and where the folder's disk or
    `most_bytes` is too small.
    """

    def __init__(self, storage: KVStorage, page_size: int, most_bytes: int, folder: Path) -> None:
        if storage.device.type != "cpu" or not storage.tile or page_size % storage.tile:
            raise ValueError(
                "kv_spill needs keys and values in the memory of the CPU, of one process, and these are "
                f"on {storage.device} as {type(storage).__name__}: leave it out"
            )
        storage.layout.refuse_running("kv_spill")
        self._storage = storage
        self._page_size = page_size
        sides = storage.page(0, page_size)
        self._page_bytes = sum(side.numel() * side.itemsize for side in sides)
        self.capacity = most_bytes // self._page_bytes
        if not self.capacity:
            raise ValueError(
                f"kv_spill is {format_bytes(most_bytes)}, and a page has {format_bytes(self._page_bytes)}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if most_bytes > free:
            raise ValueError(
                f"kv_spill is {format_bytes(most_bytes)}, and {folder} has {format_bytes(free)} free"
            )
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - it stays open
        self._slots: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._free = list(range(self.capacity - 1, -1, -1))
        self._works = True
        self.stored = self.restored = 0  # pages written and read back so far

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def store(self, key: Key, page: int) -> None:
        """Keep a page that is about to be given up."""
        if not self._works:
            return
        if key in self._slots:  # the same rows: a key says all that decides them
            self._slots.move_to_end(key)
            return
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        sides = self._storage.page(page, self._page_size)
        flat = [side.contiguous().view(-1).view(torch.uint8).numpy() for side in sides]
        data: NDArray[np.uint8] = np.concatenate(flat)
        try:
            self._file.seek(slot * self._page_bytes)
            if self._file.write(data.data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._fail(error)
            return
        self._slots[key] = slot
        self.stored += 1

    def restore(self, key: Key, page: int) -> bool:
        """Fill a page with what is kept under a key. False: nothing is, or it cannot be read."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        data = np.empty(self._page_bytes, np.uint8)
        try:
            self._file.seek(slot * self._page_bytes)
            if self._file.readinto(data.data) != len(data):
                raise OSError(errno.EIO, "the file is shorter than it was")
        except OSError as error:
            self._fail(error)
            return False
        first = 0
        for side in self._storage.page(page, self._page_size):
            size = side.numel() * side.itemsize
            own = torch.from_numpy(data[first : first + size])
            side.copy_(own.view(side.dtype).view(side.shape))
            first += size
        self._slots.move_to_end(key)
        self.restored += 1
        return True

    def touch(self, key: Key) -> None:
        """It is needed soon."""
        self._slots.move_to_end(key)

    def clear(self) -> None:
        """Forget all pages, on the disk too."""
        self._slots.clear()
        self._free = list(range(self.capacity - 1, -1, -1))
        self._file.truncate(0)

    def _fail(self, error: OSError) -> None:
        """Go on without the file: the pages are computed again."""
        logger.warning("kv_spill is not used any more: {}", error)
        self._works = False
        self._slots.clear()
