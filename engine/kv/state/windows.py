"""Pages of layers with windows: given back once no row sees them any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fastslow.engine.kv.pages import PageTable
from fastslow.engine.kv.prefix import PrefixIndex
from fastslow.engine.kv.state.running import OPENING
from fastslow.engine.types import Ints


class PageMap:
    """The page that each page has in layers with windows, one of `count`; 0: it has none any more.

    Page 0 stays zeros. Rows behind a window may be read with the block that they lie in, and are masked.
    """

    def __init__(self, pages: int, size: int, count: int) -> None:
        self.pages: Ints = np.zeros(pages, dtype=np.int64)
        self.size, self.count = size, count

    def __call__(self, slots: Ints) -> Ints:
        """Where slots lie in these layers."""
        found: Ints = self.pages[slots // self.size] * self.size + slots % self.size
        return found


class WindowCounts(NamedTuple):
    """Pages of layers with windows, those that requests have, and those that are cached."""

    pages: int = 0
    used: int = 0
    cached: int = 0


class WindowPages:
    """Who needs which page of the layers with windows.

    A request's page has one from when it is reserved until no later row of the request sees it, and a published page
    keeps it until others need the room. A text is found in the cache as far as the pages of a window before its end
    are there. So the last window of a text makes room late, and where the next turn of a chat may leave it, and what
    several texts began with; what lies between makes room first.

    users: by page, how many requests and pins need it. ring: pages that a request needs at most.
    """

    def __init__(self, where: PageMap, window: int, ring: int) -> None:
        self.map, self.ring = where, ring
        self.users = [0] * len(where.pages)
        self.free = list(range(where.count - 1, 0, -1))
        # that nobody needs, least recently used first; of these, in the middle of a text
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.passed: OrderedDict[int, None] = OrderedDict()
        window_pages = -(-window // where.size)
        self.most_pins = (
            where.count - 1 - ring
        ) // window_pages  # whose windows leave a request room
        self._window = window
        self._shared = set[int]()  # that more than one text began with

    @property
    def counts(self) -> WindowCounts:
        """What is in use now. Any thread may ask."""
        pages, cached = self.map.count - 1, len(self.kept) + len(self.passed)
        return WindowCounts(pages, max(0, pages - cached - len(self.free)), cached)

    @property
    def available(self) -> int:
        """Pages that nobody needs."""
        return len(self.free) + len(self.kept) + len(self.passed)

    def covered(self, pages: Sequence[int]) -> Sequence[int]:
        """These pages of a text, as far as all that a next row would see is there."""
        run = best = 0
        for count, page in enumerate(pages, 1):
            run = run + 1 if self.map.pages[page] else 0
            best = count if run >= count - self._first(count * self.map.size) else best
        return pages[:best]

    def take(self, pages: Iterable[int]) -> None:
        """Give fresh pages of a request their own; there must be as many `available`."""
        for page in pages:
            if not self.free:
                self.forget(next(iter(self.passed or self.kept)))
            self.map.pages[page], self.users[page] = self.free.pop(), 1

    def hold(self, table: PageTable) -> None:
        """Let a request that begins with published pages need those that its next row sees."""
        table.passed_pages = self._first(table.valid)
        for page in table.pages[table.passed_pages :]:
            self._need(page)

    def pass_by(self, table: PageTable, published: PrefixIndex) -> None:
        """Give back what no later row of a request sees."""
        turn = (table.read - OPENING) // self.map.size
        dear = range(self._first(turn * self.map.size), turn)
        first = self._first(table.valid // self.map.size * self.map.size)  # a hit ends with a page
        for place in range(table.passed_pages, first):
            self._drop(table.pages[place], published, place in dear)
        table.passed_pages = max(first, table.passed_pages)

    def give_back(self, table: PageTable, published: PrefixIndex) -> None:
        """Take all back that a request has."""
        for page in table.pages[table.passed_pages :]:
            self._drop(page, published, True)

    def replace(self, table: PageTable, place: int, page: int) -> None:
        """Let a published page take the place of the request's own, with the same rows."""
        if place < table.passed_pages:
            return
        own = table.pages[place]
        if not self.map.pages[page]:
            self.map.pages[page], self.map.pages[own] = self.map.pages[own], 0
        self._need(page)
        self.users[own] = 0
        self.forget(own)

    def forget(self, page: int) -> None:
        """The page will hold something else."""
        self.kept.pop(page, None)
        self.passed.pop(page, None)
        self._shared.discard(page)
        if self.map.pages[page]:
            self.free.append(int(self.map.pages[page]))
            self.map.pages[page] = 0

    def clear(self, published: PrefixIndex) -> None:
        """No page is published any more."""
        for page in published:
            if not self.users[page]:
                self.forget(page)

    def _first(self, valid: int) -> int:
        """The first page that is seen by the row after so many, or by a drafter's in the place of the last."""
        return max(0, valid - self._window) // self.map.size

    def _need(self, page: int) -> None:
        self.kept.pop(page, None)
        self.passed.pop(page, None)
        self._shared.add(page)
        self.users[page] += 1

    def _drop(self, page: int, published: PrefixIndex, dear: bool) -> None:
        self.users[page] -= 1
        if self.users[page]:
            return
        if page not in published:
            self.forget(page)
        else:
            (self.kept if dear or page in self._shared else self.passed)[page] = None
