"""Cached pages that are given up: counted, and kept in a file where there is one."""

from __future__ import annotations

from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.prefix import Key

MOST_MODES = 64  # whose evicted pages are counted by name


class EvictedPages:
    """Counts evicted pages by the mode whose request read them, and keeps them in a file where there is one."""

    def __init__(self) -> None:
        self.file: PageFile | None = None
        self.by_mode: dict[str, int] = {}

    def add(self, key: Key, page: int, mode: str) -> None:
        """A page is about to be given up."""
        if self.file is not None:
            self.file.store(key, page)
        if mode not in self.by_mode and len(self.by_mode) >= MOST_MODES:
            mode = "other"
        self.by_mode[mode] = self.by_mode.get(mode, 0) + 1
