"""Pages: the pool of free, used and cached ones, and the table of those that one request holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastslow.engine.types import Ints


class PagePool:
    """Page numbers 0 .. pages-1, each either free, held by `references[page]` tables, or idle. free: how many are.

    An idle page is in no table but still holds cached rows; idle pages are evicted least
    recently used first. `take` prefers consecutive pages, because a consecutive run of slots can
    be read as a view where scattered slots need a gather.
    """

    def __init__(self, pages: int) -> None:
        self.pages = self.free = pages
        self.references = [0] * pages
        self._is_free = bytearray(b"\1") * pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def idle(self) -> int:
        """Pages that hold cached rows and could be evicted."""
        return len(self._idle)

    def is_free(self, page: int) -> bool:
        """Tell whether the page holds nothing."""
        return bool(self._is_free[page])

    def idle_pages(self) -> Iterator[int]:
        """The idle pages, the next to be evicted first."""
        return iter(self._idle)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """`count` free pages, now referenced once; those next to page `after` where they are free.
        ValueError if fewer are free: evict first."""
        if count > self.free:
            raise ValueError(f"{count} pages asked for, {self.free} are free")
        taken: list[int] = []
        if after is not None:
            page = after + 1
            while len(taken) < count and page < self.pages and self._is_free[page]:
                taken.append(page)
                page += 1
            self._occupy(taken)
        if len(taken) < count:
            rest = self._longest_runs(count - len(taken))
            self._occupy(rest)
            taken += rest
        return taken

    def hold(self, page: int) -> None:
        """Count one more table that uses this cached page."""
        self._idle.pop(page, None)
        self.references[page] += 1

    def drop(self, page: int, *, cached: bool) -> None:
        """Count one table less that uses the page; after the last one it is idle if `cached`, else free."""
        self.references[page] -= 1
        if self.references[page]:
            return
        if cached:
            self._idle[page] = None
        else:
            self._release(page)

    def evict(self, count: int) -> list[int]:
        """Free the `count` least recently used idle pages and name them."""
        evicted = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for page in evicted:
            self._release(page)
        return evicted

    def _occupy(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._is_free[page] = 0
            self.references[page] = 1
            self.free -= 1

    def _release(self, page: int) -> None:
        self._is_free[page] = 1
        self.free += 1

    def _longest_runs(self, count: int) -> list[int]:
        """`count` free pages out of the longest free runs."""
        is_free = np.frombuffer(self._is_free, dtype=np.int8)
        edges: Ints = np.flatnonzero(np.diff(is_free, prepend=0, append=0))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        chosen: list[int] = []
        for run in np.argsort(-lengths, kind="stable"):
            start, length = int(starts[run]), int(lengths[run])
            used = min(count - len(chosen), length)
            # The table whose pages end where this run starts may grow: leave it half of the room.
            first = start + (length - used) // 2 if start else 0
            chosen += range(first, first + used)
            if len(chosen) == count:
                break
        return chosen


@dataclass(slots=True, eq=False)
class PageTable:
    """The pages of one request in the order of its text, and how much of them is valid."""

    page_size: int
    root: Hashable
    digest: bytes | None  # of the text in the sealed pages; None: it publishes nothing (more)
    rank: int = 0  # the data-parallel rank that has the pages
    first: int = 0  # the slot of that rank's page 0
    mode: str = ""  # its name, for statistics
    for_all: Hashable = None  # the root of pages that it may share besides its own root's
    pages: list[int] = field(default_factory=list)
    valid: int = 0  # positions whose rows are right
    sealed: int = 0  # leading pages that are, or were, published: other tables may have them
    place: int = -1  # of its running states; -1: it has none
    folded: int = 0  # positions whose rows are folded into these
    read: int = 0  # tokens of its text when it was opened: what comes after them is answered
    parted: int = 0  # of these, before which another text went on otherwise; 0: none did
    passed_pages: int = 0  # leading pages that no row sees any more in layers with windows
    tail: int = -1  # the page with the latest snapshot of its answer
    regular: list[int] = field(default_factory=list)  # pages with its snapshots each so many tokens
    passed: dict[int, int] = field(
        default_factory=dict
    )  # by position, places of snapshots that no page has yet
    _slots: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def room(self) -> int:
        """Positions covered by the pages held."""
        return len(self.pages) * self.page_size

    @property
    def last(self) -> int:
        """The last page held; -1: there is none."""
        return self.pages[-1] if self.pages else -1

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
        firsts = np.asarray(pages, dtype=np.int64) * self.page_size + self.first
        return (firsts[:, None] + np.arange(self.page_size, dtype=np.int64)).ravel()
