"""The KV cache: pages for each request, shared where texts start alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from fastslow.engine.kv import integrity
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.pages import PagePool, PageTable
from fastslow.engine.kv.prefix import EMPTY, Key, PrefixIndex, RankPages, chain
from fastslow.engine.kv.storage import KVShape, KVStorage
from fastslow.engine.types import Ints

MOST_MODES = 64  # whose evicted pages are counted by name


class KVCache:
    """Paged keys and values of many requests, with a prefix cache.

    A request is `open`ed, `reserve`s pages, has rows written at its `slots` by the model, and says
    which of them are right with `advance` (a prompt chunk) or `commit` (the accepted part of a
    draft). Every page that is full and valid is published: a later request with the same root
    whose text starts with the same tokens shares it. Shared pages are never written, for rows are
    only written at positions that are not valid yet.

    A request that completes a page which is already published gives its own copy back and shares
    the published one. So a request that holds a published page holds all pages before it, and idle pages,
    evicted least recently used first, go from the ends of texts towards their beginnings.

    Not thread-safe: call it from the engine's thread only. Methods raise KeyError for a request
    that is not open.

    layers, kv_heads, head_dim, dtype, device: shape and place of the rows, see `KVStorage`. pages: of all
    ranks (see `page_budget`). page_size: tokens in a page. prefix_caching: whether pages are published at
    all. storage: the order of the rows.

    Where attention is data parallel (`storage.dp_ranks` above 1), each rank has an equal share of the
    pages, and what does not divide is left out. A request gets a rank when it is opened: of those with
    room for all of its text the one that knows most of its beginning, then the one with most room.
    Its pages never leave it, and only requests of one rank compete for pages or share them.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        page_size: int = 16,
        dtype: torch.dtype,
        device: torch.device | str,
        prefix_caching: bool = True,
        storage: type[KVStorage] = KVStorage,
    ) -> None:
        each = pages // storage.dp_ranks
        self.page_size = page_size
        slots = each * storage.dp_ranks * page_size
        self.storage = storage(KVShape(layers, slots, kv_heads, head_dim, dtype, device))
        self.prefix_caching = prefix_caching
        self._ranks = [RankPages(PagePool(each), PrefixIndex()) for _ in range(storage.dp_ranks)]
        self._tables: dict[int, PageTable] = {}
        self._pins: dict[int, PageTable] = {}
        self.pinned_pages = 0
        self.spill: PageFile | None = None  # where evicted pages go
        self.evicted: dict[str, int] = {}  # cached pages that were given up, by mode

    @property
    def pages(self) -> int:
        """All pages there are."""
        return sum(rank.pool.pages for rank in self._ranks)

    @property
    def free_pages(self) -> int:
        """Pages that `reserve` could hand out now: empty and unused cached ones."""
        return sum(rank.available for rank in self._ranks)

    @property
    def empty_pages(self) -> int:
        """Pages that hold nothing."""
        return sum(rank.pool.free for rank in self._ranks)

    def free_for(self, request: int) -> int:
        """Pages that `reserve` could hand out now to this request."""
        return self._ranks[self._tables[request].rank].available

    def dp_rank(self, request: int) -> int:
        """The data-parallel rank that has the request; only requests of one compete for pages."""
        return self._tables[request].rank

    @property
    def requests(self) -> int:
        """Requests that are open."""
        return len(self._tables)

    def holds(self, request: int) -> bool:
        """Tell whether the request is open."""
        return request in self._tables

    def pages_for(self, length: int) -> int:
        """Pages that `length` positions need."""
        return -(-length // self.page_size)

    def fits(self, length: int) -> bool:
        """Tell whether a request of this length could ever fit, with the cache all to itself."""
        return self.pages_for(length) <= self._ranks[0].pool.pages

    def open(
        self,
        request: int,
        tokens: Sequence[int],
        root: Hashable,
        most: int,
        mode: str = "",
        for_all: Hashable = None,
    ) -> int:
        """Start a request; share the published pages its text starts with.

        root: all but the text that decides the rows, such as the mode's groups. most: share at
        most this many tokens; len(tokens) - 1 leaves a row to run, 0 shares nothing. mode: its name, by
        which evicted pages are counted. for_all: the root of pinned pages that are open to all, see `pin`.
        Returns how many tokens are valid already, a multiple of the page size.
        """
        if request in self._tables:
            raise ValueError(f"request {request} is already open")
        if not self.prefix_caching:
            most = 0
        found = [
            rank.prefix.match(tokens, root, self.page_size, most, for_all) for rank in self._ranks
        ]

        def order(n: int) -> tuple[bool, int, int]:
            known, free = len(found[n][0]), self._ranks[n].available
            return self.pages_for(len(tokens)) - known <= free, known, free

        best = max(range(len(found)), key=order) if len(found) > 1 else 0
        shared, digest = found[best]
        own = digest if self.prefix_caching else None
        table = self._sharing(root, shared, own, best, mode, for_all)
        self._tables[request] = table
        if self.spill is not None and self.prefix_caching:
            self._restore(table, self.spill, tokens, most)
        return table.valid

    def reserve(self, request: int, length: int) -> bool:
        """Hold pages for all positions below `length`, evicting cached pages if need be. Returns False, and
        changes nothing, if there are not enough."""
        table = self._tables[request]
        need = self.pages_for(length) - len(table.pages)
        if need <= 0:
            return True
        pool = self._ranks[table.rank].pool
        short = need - pool.free
        if short > pool.idle:
            return False
        if short > 0:
            self._evict(table.rank, short)
        held = table.room
        table.extend(pool.take(need, after=table.pages[-1] if table.pages else None))
        self.storage.populate(table.slots(held, table.room))
        return True

    def room(self, request: int) -> int:
        """Positions covered by the pages that the request holds."""
        return self._tables[request].room

    def valid(self, request: int) -> int:
        """Positions of the request whose rows are right."""
        return self._tables[request].valid

    def slots(self, request: int, start: int, stop: int) -> Ints:
        """Slots of positions start .. stop-1, i64 [stop - start]. A view: ask again after `reserve`, `advance`
        or `commit`. ValueError for positions that are not reserved."""
        return self._tables[request].slots(start, stop)

    def advance(self, request: int, length: int, tokens: Sequence[int]) -> None:
        """The rows of all positions below `length` are right now, as after a prompt chunk.

        tokens: the request's text, at least `length` of it. ValueError if that shrinks what is valid, or
        passes what is reserved or known of the text.
        """
        self._validate(request, self._tables[request], length, tokens)

    def commit(
        self, request: int, base: int, accepted: Sequence[int], tokens: Sequence[int]
    ) -> None:
        """Keep the accepted nodes of a draft and roll back the rejected ones. Node i was written at
        position base + i.

        A rejected token costs no work here. Accepted rows end up at base, base + 1, ..., and what is valid
        ends there: the rows after that are dead. The next step writes over them, in the same slots; pages stay
        reserved. An accepted chain is in place, so nothing is copied. Only where a branch is accepted past
        a rejected sibling, its rows move down. Only valid rows are ever published, so no rejected one is.
        Drafters with a cache roll it back themselves: see `OwnKV` of `draft/model/kv.py`.

        accepted: nodes, root to leaf, ascending. Rows below `base` must be right where they are.
        tokens: the request's text, with the accepted tokens. ValueError as of `advance`, and for nodes that
        do not ascend or leave what is reserved.
        """
        table = self._tables[request]
        if base < table.valid:
            raise ValueError(f"base {base} is among the {table.valid} valid positions")
        places = [place for place, node in enumerate(accepted) if node != place]
        if places:
            if accepted[0] < 0 or any(a >= b for a, b in pairwise(accepted)):
                raise ValueError(f"accepted nodes {list(accepted)} do not ascend")
            drafted = table.slots(base, base + accepted[-1] + 1)
            self.storage.move(drafted[[accepted[place] for place in places]], drafted[places])
        self._validate(request, table, base + len(accepted), tokens)

    def close(self, request: int) -> None:
        """Give all pages of a request back. Published ones stay cached until they are evicted."""
        self._give_back(self._tables.pop(request))

    def stop_publishing(self, request: int) -> None:
        """Do not share what the request writes from now on."""
        self._tables[request].digest = None

    def check_pin(self, pages: int, spare: int) -> None:
        """Raise ValueError if `pages` more are too many to be pinned: at most half of a rank's may
        be, and `spare` pages must be left, so that the longest request always finds room."""
        whole = self._ranks[0].pool.pages
        most = min(whole // 2, whole - spare)
        if self.pinned_pages + pages > most:
            others = f"{self.pinned_pages} are pinned already, and " if self.pinned_pages else ""
            raise ValueError(
                f"the prefix needs {pages} KV pages; {others}of {whole} pages at most {most} may be "
                "pinned: raise kv_memory, or pin less"
            )

    def pin(
        self,
        number: int,
        tokens: Sequence[int],
        root: Hashable,
        spare: int,
        for_all: Hashable = None,
    ) -> int:
        """Keep the published pages that a text starts with from being evicted, until `unpin`.

        number: names the pin. root: as in `open`. spare: see `check_pin`. for_all: a root by which requests
        of any root find these pages, and none after them; None = only this root's do.
        Returns how many tokens they hold. Raises ValueError as `check_pin` does.
        """
        found = [
            rank.prefix.match(tokens, root, self.page_size, len(tokens)) for rank in self._ranks
        ]
        best = max(range(len(found)), key=lambda rank: len(found[rank][0]))
        shared, digest = found[best]
        held = {page for table in self._pins.values() if table.rank == best for page in table.pages}
        self.check_pin(len(set(shared) - held), spare)
        table = self._pins[number] = self._sharing(root, shared, digest, best, "", for_all)
        self._pins_changed()
        return table.valid

    def unpin(self, number: int) -> None:
        """The pages of a pin may be evicted again. An unknown number is fine."""
        if (table := self._pins.pop(number, None)) is not None:
            self._give_back(table)
            self._pins_changed()

    def clear_prefix(self) -> None:
        """Forget all cached pages, pinned ones too. Nothing of open requests is published any more."""
        for number in list(self._pins):
            self.unpin(number)
        if self.spill is not None:
            self.spill.clear()
        for pool, index in self._ranks:
            pool.evict(pool.idle)
            index.clear()
        for table in self._tables.values():
            table.digest = None

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if any page is lost, leaked, or shared by mistake."""
        for n, (pool, index) in enumerate(self._ranks):
            pins = {-1 - number: table for number, table in self._pins.items()}
            holders = {**self._tables, **pins}
            tables = {holder: t for holder, t in holders.items() if t.rank == n}
            integrity.check(pool, index, tables)

    def _sharing(
        self,
        root: Hashable,
        shared: Sequence[int],
        digest: bytes | None,
        rank: int,
        mode: str,
        for_all: Hashable,
    ) -> PageTable:
        """A table that begins with published pages."""
        pool = self._ranks[rank].pool
        first = rank * pool.pages * self.page_size
        table = PageTable(self.page_size, root, digest, rank, first, mode, for_all)
        for page in shared:
            pool.hold(page)
        table.extend(shared)
        table.sealed = len(shared)
        table.valid = table.room
        return table

    def _restore(self, table: PageTable, spill: PageFile, tokens: Sequence[int], most: int) -> None:
        """Read back the pages that follow those it shares, where its whole text will find room."""
        pool, index = self._ranks[table.rank]
        keys: list[Key] = []
        digest, size = table.digest or EMPTY, self.page_size
        for start in range(table.room, min(most, len(tokens)) - size + 1, size):
            digest = chain(digest, tokens[start : start + size])
            key = Key(table.root, digest)
            # the index has it where it lies after other pages of the same text
            if key not in spill or index.find(key) is not None:
                break
            keys.append(key)
            spill.touch(key)
        room = self._ranks[table.rank].available
        if not keys or self.pages_for(len(tokens)) - len(table.pages) > room:
            return
        self._evict(table.rank, max(0, len(keys) - pool.free))
        fresh = pool.take(len(keys), after=table.pages[-1] if table.pages else None)
        for place, (key, page) in enumerate(zip(keys, fresh, strict=True)):
            if not spill.restore(key, page):
                for unused in fresh[place:]:
                    pool.drop(unused, cached=False)
                break
            index.add(key, page, table.pages[-1] if table.pages else -1, table.mode)
            table.extend([page])
            table.sealed, table.digest = table.sealed + 1, key.digest
        table.valid = table.room

    def _evict(self, rank: int, count: int) -> None:
        """Give up cached pages; what is kept of them lies in the spill file."""
        pool, index = self._ranks[rank]
        for page in pool.evict(count):
            if self.spill is not None:
                self.spill.store(index.key(page), page)
            mode = index.forget(page)
            if mode not in self.evicted and len(self.evicted) >= MOST_MODES:
                mode = "other"
            self.evicted[mode] = self.evicted.get(mode, 0) + 1

    def _give_back(self, table: PageTable) -> None:
        pool, index = self._ranks[table.rank]
        # The end of the text first: idle pages are evicted in this order.
        for page in reversed(table.pages):
            pool.drop(page, cached=page in index)

    def _pins_changed(self) -> None:
        pins = self._pins.values()
        self.pinned_pages = len({(table.rank, page) for table in pins for page in table.pages})
        for n, rank in enumerate(self._ranks):
            open_ones = [t for t in pins if t.rank == n and t.for_all is not None]
            rank.prefix.open_to_all((t.for_all, page) for t in open_ones for page in t.pages)

    def _validate(self, request: int, table: PageTable, length: int, tokens: Sequence[int]) -> None:
        limit = min(table.room, len(tokens))
        if not table.valid <= length <= limit:
            raise ValueError(
                f"request {request}: length {length} is outside {table.valid}..{limit}, "
                "from what is valid to what is reserved and known"
            )
        table.valid = length
        while table.digest is not None and (table.sealed + 1) * self.page_size <= length:
            self._seal(table, table.digest, tokens)

    def _seal(self, table: PageTable, digest: bytes, tokens: Sequence[int]) -> None:
        """Publish the first page that is not sealed, or share the one published in its place."""
        place = table.sealed
        start = place * self.page_size
        digest = chain(digest, tokens[start : start + self.page_size])
        key = Key(table.root, digest)
        pool, index = self._ranks[table.rank]
        parent = table.pages[place - 1] if place else -1
        published = index.following(parent, key, table.for_all)
        if published is None:
            if index.find(key) is not None:  # after other pages of the same text
                table.digest = None
                return
            index.add(key, table.pages[place], parent, table.mode)
        else:
            pool.hold(published)
            pool.drop(table.pages[place], cached=False)
            table.replace(place, published)
        table.sealed += 1
        table.digest = digest
