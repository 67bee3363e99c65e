"""Pinned pages: published ones that are not evicted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from fastslow.engine.kv.pages import PageTable
from fastslow.engine.kv.rank_pages import RankPages


class Pins:
    """The pins of one cache: each keeps the published pages that a text begins with. pages: how many are pinned."""

    def __init__(self, ranks: Sequence[RankPages]) -> None:
        self._ranks = ranks
        self._tables: dict[int, PageTable] = {}
        self.pages = 0

    def check(self, pages: int, spare: int) -> None:
        """Raise ValueError if `pages` more are too many to be pinned: at most half of a rank's may
        be, and `spare` pages must be left, so that the longest request always finds room. So may half of the snapshots
        of running states; a pin keeps one. A pin keeps a last window of layers with windows, too."""
        whole = self._ranks[0].pool.pages
        most = min(whole // 2, whole - spare)
        places = self._ranks[0].places
        if places is not None and len(self._tables) >= places.states.snapshots // 2:
            raise ValueError(
                f"{len(self._tables)} prefixes are pinned already, and of {places.states.snapshots} snapshots of "
                "running states at most half may be pinned: raise kv_memory, or pin less"
            )
        windows = self._ranks[0].windows
        if windows is not None and len(self._tables) >= windows.most_pins:
            raise ValueError(
                f"{len(self._tables)} prefixes are pinned already, and layers with windows have room for "
                f"{windows.most_pins}: raise kv_memory, or pin less"
            )
        if self.pages + pages > most:
            others = f"{self.pages} are pinned already, and " if self.pages else ""
            raise ValueError(
                f"the prefix needs {pages} KV pages; {others}of {whole} pages at most {most} may be "
                "pinned: raise kv_memory, or pin less"
            )

    def add(
        self,
        number: int,
        tokens: Sequence[int],
        root: Hashable,
        spare: int,
        for_all: Hashable = None,
    ) -> int:
        """Keep the published pages that a text starts with from being evicted, until `remove`.

        number: names the pin. root: as in `KVCache.open`. spare: see `check`. for_all: a root by which requests
        of any root find these pages, and none after them; None = only this root's do.
        Returns how many tokens they hold. Raises ValueError as `check` does.
        """
        found = [rank.match(tokens, root, len(tokens)) for rank in self._ranks]
        best = max(range(len(found)), key=lambda rank: len(found[rank][0]))
        shared, digest = found[best]
        held = {page for table in self.tables(best).values() for page in table.pages}
        self.check(len(set(shared) - held), spare)
        pin = self._tables[number] = self._ranks[best].share(root, shared, digest, "", for_all)
        self._changed()
        return pin.valid

    def remove(self, number: int) -> None:
        """The pages of a pin may be evicted again. An unknown number is fine."""
        if (table := self._tables.pop(number, None)) is not None:
            self._ranks[table.rank].give_back(table)
            self._changed()

    def clear(self) -> None:
        """Remove all pins."""
        for number in list(self._tables):
            self.remove(number)

    def tables(self, rank: int) -> Mapping[int, PageTable]:
        """The pins with pages of one rank, by their numbers."""
        return {number: table for number, table in self._tables.items() if table.rank == rank}

    def _changed(self) -> None:
        pins = self._tables.values()
        self.pages = len({(pin.rank, page) for pin in pins for page in pin.pages})
        for n, rank in enumerate(self._ranks):
            opened = [pin for pin in self.tables(n).values() if pin.for_all is not None]
            if rank.places is not None:
                rank.places.keep({pin.last for pin in pins})
            rank.prefix.open_to_all((pin.for_all, page) for pin in opened for page in pin.pages)
