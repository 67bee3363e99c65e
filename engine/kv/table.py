"""One request's pages: which slot each position of its text lives in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from fastslow.engine.types import Ints


class PageTable:
    """The pages of one request in the order of its text, and how much of them is valid.

    `valid`: positions whose rows are right. `sealed`: leading pages that are, or were, published:
    they may be in other tables too and are never written. `digest`: that of the text in the
    sealed pages; None: this table publishes nothing (more).
    """

    __slots__ = ("_slots", "digest", "page_size", "pages", "root", "sealed", "valid")

    def __init__(self, page_size: int, root: Hashable, digest: bytes | None) -> None:
        self.page_size = page_size
        self.root = root
        self.digest = digest
        self.pages: list[int] = []
        self.valid = 0
        self.sealed = 0
        self._slots: Ints = np.empty(0, dtype=np.int64)

    @property
    def room(self) -> int:
        """Positions covered by the pages held."""
        return len(self.pages) * self.page_size

    def extend(self, pages: Sequence[int]) -> None:
        """Append pages."""
        start = self.room
        self.pages.extend(pages)
        if self.room > len(self._slots):
            grown = np.empty(max(self.room, 2 * start), dtype=np.int64)
            grown[:start] = self._slots[:start]
            self._slots = grown
        self._slots[start : self.room] = self._slots_of(pages)

    def replace(self, index: int, page: int) -> None:
        """Let another page with the same rows take the place of page `index`."""
        self.pages[index] = page
        start = index * self.page_size
        self._slots[start : start + self.page_size] = self._slots_of([page])

    def slots(self, start: int, stop: int) -> Ints:
        """Slots of positions start .. stop-1: a view, i64 [stop - start]."""
        if not 0 <= start <= stop <= self.room:
            raise ValueError(f"positions {start}:{stop} are outside the {self.room} held")
        return self._slots[start:stop]

    def _slots_of(self, pages: Sequence[int]) -> Ints:
        firsts = np.asarray(pages, dtype=np.int64) * self.page_size
        return (firsts[:, None] + np.arange(self.page_size, dtype=np.int64)).ravel()
