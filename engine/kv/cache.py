"""The KV cache: pages for each request, shared where texts start alike."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from itertools import pairwise

import torch

from fastslow.engine.kv import integrity
from fastslow.engine.kv.evicted import EvictedPages
from fastslow.engine.kv.pages import PageTable
from fastslow.engine.kv.pins import Pins
from fastslow.engine.kv.rank_pages import RankPages
from fastslow.engine.kv.state.layout import UNFOLDED, StateLayout
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.kv.state.windows import PageMap, WindowPages
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints


class KVCache:
    """Paged keys and values of many requests, with a prefix cache.

    The life of a request: `open`, then in each step `reserve` pages, have the model write rows at its `slots`, and
    say which of them count with `advance` (a prompt chunk) or `commit` (the accepted part of a draft); in the end
    `close`. Rows that count are valid. Rows are written only at positions that are not valid yet.

    A page that is full and valid is published. A later request shares it if it has the same root and its text starts
    with the same tokens. Two requests may fill a page with the same text: the second one drops its copy and shares
    the first. So whoever holds a published page holds all pages before it too. Published pages that nobody holds are
    evicted when room is needed, least recently used first, and the end of a text before its beginning.

    Not thread-safe: call it from the engine's thread only. Methods raise KeyError for a request
    that is not open.

    Where attention is data parallel (`storage.dp_ranks` above 1), each rank has an equal number of pages. A request
    gets a rank when it is opened: among ranks with room for its whole text the one that has most of its beginning
    cached, then the one with most room. It stays there: only requests of one rank share pages or compete for them.

    Args:
        layout, dtype, device: what is kept of a text, and where, see `KVStorage`.
        pages: of all ranks together, see `page_budget`.
        places, snapshots: running states of requests, and copies of them at the ends of cached pages.
        ring: most pages that a request needs in layers with windows, which then have pages of their own: so many for
            each of the places, and those of a window for each of the snapshots. 0: they keep all pages.
        page_size: tokens in a page.
        prefix_caching: False = no page is published.
        storage: how rows lie in memory.
    """

    def __init__(
        self,
        *,
        layout: StateLayout,
        pages: int,
        page_size: int = 16,
        dtype: torch.dtype,
        device: torch.device | str,
        prefix_caching: bool = True,
        storage: type[KVStorage] = KVStorage,
        places: int = 64,
        snapshots: int = 16,
        ring: int = 0,
    ) -> None:
        each, ranks = pages // storage.dp_ranks, range(storage.dp_ranks)
        self.pages = each * len(ranks)
        self.page_size = page_size
        slots = self.pages * page_size
        self.windows: WindowPages | None = None
        if ring:
            count = 1 + places * ring + snapshots * self.pages_for(layout.window)
            where = PageMap(self.pages, page_size, count)
            self.storage = storage(layout, slots, dtype, device, where)
            self.windows = WindowPages(where, layout.window, ring)
        else:
            self.storage = storage(layout, slots, dtype, device)
        # rows of a request that may run beside its running states before they are folded in
        self.unfolded = UNFOLDED if layout.running else sys.maxsize
        if layout.running:
            self.storage.running = RunningStates(layout, places, snapshots, dtype, device)
        self.prefix_caching = prefix_caching
        self.evicted = EvictedPages()
        self._ranks = [
            RankPages(rank, each, page_size, self.evicted, self.storage.running, self.windows)
            for rank in ranks
        ]
        self.states = [rank.places for rank in self._ranks if rank.places is not None]
        self.pins = Pins(self._ranks)
        self._tables: dict[int, PageTable] = {}
        self.requests = self._tables.keys()  # that are open

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
        table = self._tables[request]
        return self._ranks[table.rank].free_for(table)

    def dp_rank(self, request: int) -> int:
        """The data-parallel rank that has the request; only requests of one compete for pages."""
        return self._tables[request].rank

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
        """Start a request, and share the published pages that its text starts with.

        root: everything besides the text that decides the rows, such as the mode's groups. most: share no more
        tokens than this; len(tokens) - 1 leaves one row to run, 0 shares nothing. mode: its name, for the count of
        evicted pages. for_all: a second root, whose pinned pages all may share, see `Pins.add`.
        Returns how many tokens are valid already, a multiple of the page size.
        """
        if request in self._tables:
            raise ValueError(f"request {request} is already open")
        if not self.prefix_caching or not self._ranks[0].has_place:
            most = 0
        found = [rank.match(tokens, root, most, for_all) for rank in self._ranks]

        def order(n: int) -> tuple[bool, int, int]:
            known, free = len(found[n][0]), self._ranks[n].available
            return self.pages_for(len(tokens)) - known <= free, known, free

        best = max(range(len(found)), key=order) if len(found) > 1 else 0
        shared, digest = found[best]
        own = digest if self.prefix_caching else None
        table = self._ranks[best].share(root, shared, own, mode, for_all)
        self._tables[request] = table
        self._ranks[best].begin(table, tokens)
        self._ranks[best].restore(table, tokens, most)
        return table.valid

    def reserve(self, request: int, length: int) -> bool:
        """Hold pages for all positions below `length`, evicting cached pages if need be. Returns False, and
        changes nothing, if there are not enough."""
        table = self._tables[request]
        need = self.pages_for(length) - len(table.pages)
        if need <= 0:
            return True
        held = table.room
        if not self._ranks[table.rank].extend(table, need):
            return False
        self.storage.populate(table.slots(held, table.room))
        return True

    def room(self, request: int) -> int:
        """Positions to which rows may be written now: pages are held for them, and none is too far after what is folded
        into running states."""
        table = self._tables[request]
        return min(table.room, table.folded + self.unfolded)

    def running(self, request: int, rows: Sequence[int], fold_to: int) -> RunningRows | None:
        """Plan a forward's work on the request's running states; None: the layout has none. It must run, once.

        rows: the positions that it writes, ascending. fold_to: rows of all positions below are final, as those of a
        text that is read, and are folded in if they are these rows or come before them.
        Raises ValueError for rows that are folded in already, and for too many that are not.
        """
        table = self._tables[request]
        if (places := self._ranks[table.rank].places) is None:
            return None
        return places.rows(table, rows, fold_to)

    def place(self, request: int) -> int:
        """Where the request's running states are; -1: it has none."""
        return self._tables[request].place

    def valid(self, request: int) -> int:
        """Positions of the request whose rows are right."""
        return self._tables[request].valid

    def slots(self, request: int, start: int, stop: int) -> Ints:
        """Return the slots of positions start .. stop-1, i64 [stop - start]. It is a view: ask again after `reserve`,
        `advance` or `commit`. Raises ValueError for positions that are not reserved."""
        return self._tables[request].slots(start, stop)

    def advance(self, request: int, length: int, tokens: Sequence[int]) -> None:
        """Count the rows of all positions below `length` as valid, as after a prompt chunk.

        tokens: the request's text, at least its first `length` tokens. Raises ValueError if `length` is below what
        is valid, or beyond what is reserved or what `tokens` holds.
        """
        table = self._tables[request]
        limit = min(table.room, len(tokens))
        if not table.valid <= length <= limit:
            raise ValueError(
                f"request {request}: length {length} is outside {table.valid}..{limit}, "
                "from what is valid to what is reserved and known"
            )
        table.valid = length
        self._ranks[table.rank].publish(table, tokens)

    def commit(
        self, request: int, base: int, accepted: Sequence[int], tokens: Sequence[int]
    ) -> None:
        """Keep the accepted nodes of a draft and roll back the rejected ones. Node i was written at position
        base + i.

        The accepted rows must end up at base, base + 1, ... An accepted chain is there already. Only a branch that
        was accepted past a rejected sibling moves down. What is valid ends after the accepted rows, so rejected rows
        cost nothing: the next step writes over them, in the same pages, and they are never published. Drafters with
        a cache of their own roll it back themselves, see `OwnKV` in `draft/model/kv.py`.

        accepted: nodes, root to leaf, ascending. Rows below `base` must be right already.
        tokens: the request's text, with the accepted tokens.
        Raises ValueError as `advance` does, and for nodes that do not ascend or are not reserved.
        """
        table = self._tables[request]
        if base < table.valid:
            raise ValueError(f"base {base} is among the {table.valid} valid positions")
        places = [place for place, node in enumerate(accepted) if node != place]
        if places:
            if accepted[0] < 0 or any(a >= b for a, b in pairwise(accepted)):
                raise ValueError(f"accepted nodes {list(accepted)} do not ascend")
            drafted, moved = (
                table.slots(base, base + accepted[-1] + 1),
                [accepted[place] for place in places],
            )
            self.storage.move(drafted[moved], drafted[places])
            if (running := self.storage.running) is not None:
                running.move(
                    table.place, [base + node for node in moved], [base + place for place in places]
                )
        self.advance(request, base + len(accepted), tokens)

    def close(self, request: int) -> None:
        """End a request. Its published pages stay cached until they are evicted."""
        table = self._tables.pop(request)
        self._ranks[table.rank].give_back(table)

    def stop_publishing(self, request: int) -> None:
        """Publish no more pages of this request."""
        self._tables[request].digest = None

    def clear_prefix(self) -> None:
        """Forget all cached pages, pinned ones too. Open requests publish nothing any more."""
        self.pins.clear()
        if self.evicted.file is not None:
            self.evicted.file.clear()
        for rank in self._ranks:
            rank.clear()
        for table in self._tables.values():
            table.digest = None

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if any page is lost, leaked, or shared by mistake."""
        for n, rank in enumerate(self._ranks):
            tables = {request: table for request, table in self._tables.items() if table.rank == n}
            pins = {-1 - number: table for number, table in self.pins.tables(n).items()}
            integrity.check(rank.pool, rank.prefix, {**tables, **pins}, rank.places, rank.windows)
