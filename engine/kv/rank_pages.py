"""The pages of one data-parallel rank: who holds them, and which of them are published."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fastslow.engine.kv.evicted import EvictedPages
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.pages import PagePool, PageTable
from fastslow.engine.kv.prefix import EMPTY, Key, PrefixIndex, chain
from fastslow.engine.kv.state.running import RunningStates, StatePlaces
from fastslow.engine.kv.state.windows import WindowPages


class RankPages:
    """Hands the pages of one rank out to tables, and publishes those that are full and valid.

    evicted: takes the cached pages that make room for others. states: running states of the requests. windows: pages
    of layers with windows, where these have their own.
    """

    def __init__(
        self,
        rank: int,
        pages: int,
        page_size: int,
        evicted: EvictedPages,
        states: RunningStates | None = None,
        windows: WindowPages | None = None,
    ) -> None:
        self._rank = rank
        self.page_size = page_size
        self.evicted = evicted
        self.pool = PagePool(pages)
        self.prefix = PrefixIndex()
        self.places = None if states is None else StatePlaces(states, page_size)
        self.windows = windows

    @property
    def available(self) -> int:
        """Empty pages, and cached ones that no request uses."""
        return self.pool.free + self.pool.idle

    def free_for(self, table: PageTable) -> int:
        """Pages that a text could get now, however long it takes, in layers with windows too."""
        windows, held = self.windows, len(table.pages) - table.passed_pages
        if windows is None or windows.available + held >= windows.ring:
            return self.available
        return min(self.available, windows.available)

    @property
    def has_place(self) -> bool:
        """Tell whether one more request could have running states, or needs none."""
        return self.places is None or self.places.able

    def match(
        self, tokens: Sequence[int], root: Hashable, most: int, for_all: Hashable = None
    ) -> tuple[Sequence[int], bytes]:
        """See `PrefixIndex.match`; with windows only pages whose last window is there; with running states only pages
        up to one that has a snapshot, and none where the text finds no room: its state would be copied in vain."""
        pages, digest = self.prefix.match(tokens, root, self.page_size, most, for_all)
        covered: Sequence[int] = pages
        count = -1
        while count != len(covered):  # as far as both hold
            count = len(covered)
            covered = covered if self.windows is None else self.windows.covered(covered)
            covered = covered if self.places is None else self.places.covered(covered)
        if self.places is not None and not self._fits(len(tokens), covered):
            covered = ()
        if len(covered) == len(pages):
            return pages, digest
        return covered, self.prefix.key(covered[-1]).digest if covered else EMPTY

    def begin(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Give a request with this text a place for its running states, if one is free and there are pages for it, and
        note where others of the same beginning would want a snapshot: at its end, and where it leaves a text that goes
        on otherwise."""
        size, table.read = self.page_size, len(tokens)
        if self.places is None:
            return
        known, _ = self.prefix.match(tokens, table.root, size, table.read, table.for_all)
        far = len(known) > len(table.pages) + 1 and self.prefix.goes_on(known[-1])
        table.parted = len(known) * size if far else 0
        if self._fits(table.read, table.pages):
            self.places.begin(table)

    def share(
        self,
        root: Hashable,
        pages: Sequence[int],
        digest: bytes | None,
        mode: str = "",
        for_all: Hashable = None,
    ) -> PageTable:
        """Return a table that begins with these published pages; see `PageTable`."""
        first = self._rank * self.pool.pages * self.page_size
        table = PageTable(self.page_size, root, digest, self._rank, first, mode, for_all)
        for page in pages:
            self.pool.hold(page)
        table.extend(pages)
        table.sealed = len(pages)
        table.valid = table.room
        if self.windows is not None:
            self.windows.hold(table)
        return table

    def extend(self, table: PageTable, count: int) -> bool:
        """Give a table more pages. Returns False, and changes nothing, where there are not enough."""
        if count > self.available or not (self.places is None or self.places.begin(table)):
            return False
        if self.windows is not None and count > self.windows.available:
            return False
        fresh = self._take(count, table)
        if self.windows is not None:
            self.windows.take(fresh)
        table.extend(fresh)
        return True

    def give_back(self, table: PageTable) -> None:
        """Take all pages of a table back. Published ones stay cached."""
        if self.windows is not None:
            self.windows.give_back(table, self.prefix)
        # The end of the text first: idle pages are evicted in this order.
        for page in reversed(table.pages):
            self.pool.drop(page, cached=page in self.prefix)
        if self.places is not None:
            self.places.end(table)

    def restore(self, table: PageTable, tokens: Sequence[int], most: int) -> None:
        """Read back from the file of evicted pages those that follow the ones that the table shares, within
        the first `most` tokens. Nothing happens where the whole text would find no room."""
        if (file := self.evicted.file) is None:
            return
        keys = self._restorable(file, table, tokens[:most])
        needed = -(-len(tokens) // self.page_size) - len(table.pages)
        if not keys or needed > self.available:
            return
        fresh = self._take(len(keys), table)
        for place, (key, page) in enumerate(zip(keys, fresh, strict=True)):
            if not file.restore(key, page):
                for unused in fresh[place:]:
                    self.pool.drop(unused, cached=False)
                break
            self.prefix.add(key, page, table.last, table.mode)
            table.extend([page])
            table.sealed, table.digest = table.sealed + 1, key.digest
        table.valid = table.room

    def publish(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Publish the table's pages that are full and valid, or share those published in their place."""
        size = self.page_size
        while table.digest is not None and (table.sealed + 1) * size <= table.valid:
            place = table.sealed
            digest = chain(table.digest, tokens[place * size : (place + 1) * size])
            key = Key(table.root, digest)
            parent = table.pages[place - 1] if place else -1
            published = self.prefix.following(parent, key, table.for_all)
            if published is not None:
                if self.windows is not None:
                    self.windows.replace(table, place, published)
                self.pool.hold(published)
                self.pool.drop(table.pages[place], cached=False)
                table.replace(place, published)
            elif self.prefix.find(key) is not None:  # after other pages of the same text
                table.digest = None
                break
            else:
                self.prefix.add(key, table.pages[place], parent, table.mode)
            table.sealed += 1
            table.digest = digest
        if table.passed and self.places is not None:
            self.places.publish(table, self.prefix)
        if self.windows is not None:
            self.windows.pass_by(table, self.prefix)

    def clear(self) -> None:
        """Forget all cached pages that no table holds, and the texts of all others."""
        self.pool.evict(self.pool.idle)
        if self.places is not None:
            for page in self.prefix:
                self.places.forget(page)
        if self.windows is not None:
            self.windows.clear(self.prefix)
        self.prefix.clear()

    def _fits(self, length: int, begun: Sequence[int]) -> bool:
        """Tell whether a text of this length finds pages beside these cached ones that it begins with."""
        unused = sum(not self.pool.references[page] for page in begun)
        return -(-length // self.page_size) - len(begun) <= self.available - unused

    def _restorable(self, file: PageFile, table: PageTable, tokens: Sequence[int]) -> list[Key]:
        """Keys of the pages that a file has after those of the table."""
        keys: list[Key] = []
        digest, size = table.digest or EMPTY, self.page_size
        for start in range(table.room, len(tokens) - size + 1, size):
            digest = chain(digest, tokens[start : start + size])
            key = Key(table.root, digest)
            # the index has it where it lies after other pages of the same text
            if key not in file or self.prefix.find(key) is not None:
                break
            keys.append(key)
            file.touch(key)
        return keys

    def _take(self, count: int, table: PageTable) -> list[int]:
        """Take empty pages for a table, next to its last one if possible; cached ones make room."""
        for page in self.pool.evict(max(0, count - self.pool.free)):
            key = self.prefix.key(page)
            self.evicted.add(key, page, self.prefix.forget(page))
            if self.places is not None:
                self.places.forget(page)
            if self.windows is not None:
                self.windows.forget(page)
        return self.pool.take(count, after=table.last if table.pages else None)
