"""Running states: one for each request, and copies of them at the ends of cached pages."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np
import torch

from fastslow.engine.host.lazy_memory import lazy_zeros
from fastslow.engine.kv.pages import PageTable
from fastslow.engine.kv.prefix import PrefixIndex
from fastslow.engine.kv.state.layout import UNFOLDED, StateLayout, wide
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints

EVERY = 256  # tokens from one snapshot of a long text to the next
KEPT = 4  # of these, besides those at marks


class RunningStates:
    """The memory of running states, in places: each of the first has the state of a request, the others snapshots.

    `state[layer]`: its parts, each [places + snapshots, ...]. `rows[layer]`: the parts that a row adds, each
    [places, UNFOLDED, ...]: those of the row at position p of a request are at p % UNFOLDED, until it is folded in.

    The model folds. It has one order for it, row by row, and one rounding: a state is then the same, bit for bit,
    whatever steps its text came in.
    """

    def __init__(
        self,
        layout: StateLayout,
        places: int,
        snapshots: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.places, self.snapshots = places, snapshots
        dtype = wide(dtype)
        self.state = {
            n: tuple(lazy_zeros((places + snapshots, *shape), dtype, device) for shape in s.shapes)
            for n, s in layout.running.items()
        }
        self.rows = {
            n: tuple(lazy_zeros((places, UNFOLDED, *shape), dtype, device) for shape in s.inputs)
            for n, s in layout.running.items()
        }

    def clear(self, place: int) -> None:
        """Let the state be that of no text."""
        for parts in self.state.values():
            for part in parts:
                part[place].zero_()

    def copy(self, source: int, target: int) -> None:
        """Copy the state of one place to another."""
        for parts in self.state.values():
            for part in parts:
                part[target].copy_(part[source])

    def move(self, place: int, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy the row of position src[i] to dst[i], as if all were read before any is written."""
        read, written = ([position % UNFOLDED for position in some] for some in (src, dst))
        for parts in self.rows.values():
            for part in parts:
                part[place, written] = part[place, read]


class StatePlaces:
    """Who has which place of the running states.

    A request has one from when it is opened to its end. A snapshot belongs to a published page, and holds the state
    at its end. Requests that begin with the page's text begin with the snapshot. It goes with its page; where none is
    free, the least recently used one makes room.

    A long text keeps its latest snapshots only, besides those at its marks: so one text does not take all of them.
    Marks where texts part: Pan et al. 2024, arXiv 2411.19379.

    free, spare: places that no request has, and no snapshot. snapshots: by page, least recently used first. kept: pages
    whose snapshots make no room.
    """

    def __init__(self, states: RunningStates, page_size: int) -> None:
        self.states = states
        self._page_size = page_size
        self._every = math.lcm(EVERY, page_size)
        self.free = list(range(states.places))
        self.spare = list(range(states.places, states.places + states.snapshots))
        self.snapshots: OrderedDict[int, int] = OrderedDict()
        self.kept: Collection[int] = ()

    def covered(self, pages: Sequence[int]) -> Sequence[int]:
        """These pages of a text, up to the last one that has a snapshot."""
        last = max((n for n, page in enumerate(pages) if page in self.snapshots), default=-1)
        return pages[: last + 1]

    def begin(self, table: PageTable) -> bool:
        """Give the request of a table a place, with the state at the end of its pages. False: none is free."""
        if table.place >= 0:
            return True
        if not self.free:
            return False
        table.place, table.folded = self.free.pop(), table.valid
        if table.valid:
            self.snapshots.move_to_end(table.last)
            self.states.copy(self.snapshots[table.last], table.place)
        else:
            self.states.clear(table.place)
        return True

    def end(self, table: PageTable) -> None:
        """Take the place of a request back, and those of snapshots that no page has yet."""
        if table.place >= 0:
            self.free.append(table.place)
            table.place = -1
        self.spare += table.passed.values()
        table.passed.clear()

    def rows(
        self, table: PageTable, rows: Sequence[int], fold_to: int, before: Sequence[int] | None
    ) -> RunningRows:
        """See `KVCache.running`."""
        folded, first = table.folded, rows[0]
        text = range(folded, before[0] if before else first)
        earlier = [*text, *(before or ())]
        folds = stable = 0
        if before is None and fold_to >= first:
            folds, stable = len(earlier), min(fold_to, rows[-1] + 1) - first
        after = folded + folds + stable
        if first < folded or rows[-1] - after >= UNFOLDED:
            raise ValueError(
                f"rows of positions {first}..{rows[-1]} run where {after} rows are folded in: they must come "
                f"after these, and at most {UNFOLDED} may not be folded in yet"
            )
        table.folded = after
        snapshots = self._passed(table, folded) if after > folded else ()
        return RunningRows(table.place, _ring(earlier), folds, stable, _ring(rows), snapshots)

    def publish(self, table: PageTable, published: PrefixIndex) -> None:
        """Give the snapshots that a request has passed to its published pages."""
        for position, place in table.passed.items():
            page = table.pages[position // self._page_size - 1]
            if page in published and page not in self.snapshots:
                self.snapshots[page] = place
                table.regular += [page] * (position not in table.marks)
            else:
                self.spare.append(place)
        table.passed.clear()
        while len(table.regular) > KEPT:
            self.forget(table.regular.pop(0))

    def forget(self, page: int) -> None:
        """The page will hold something else."""
        if (place := self.snapshots.pop(page, None)) is not None:
            self.spare.append(place)

    def _passed(self, table: PageTable, start: int) -> tuple[tuple[int, int], ...]:
        """Places for the states that the request passes from `start` to the last row folded in now."""
        if table.digest is None:
            return ()
        stop, every = table.folded, self._every
        marks = {*range((start // every + 1) * every, stop + 1, every)}
        marks |= {mark for mark in table.marks if start < mark <= stop}
        found: list[tuple[int, int]] = []
        for mark in sorted(marks):
            place = mark // self._page_size
            known = place <= table.sealed and table.pages[place - 1] in self.snapshots
            if not known and (to := self._spare()) >= 0:
                table.passed[mark] = to
                found.append((mark - start, to))
        return tuple(found)

    def _spare(self) -> int:
        """A place for one more snapshot; -1: all are kept."""
        if not self.spare:
            page = next((page for page in self.snapshots if page not in self.kept), -1)
            self.forget(page)
        return self.spare.pop() if self.spare else -1


def _ring(positions: Sequence[int]) -> Ints:
    return np.asarray(positions, dtype=np.int64) % UNFOLDED
