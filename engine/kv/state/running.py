"""Running states: one for each request, and copies of them at the ends of cached pages."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.host.lazy_memory import lazy_zeros
from fastslow.engine.kv.pages import PageTable
from fastslow.engine.kv.prefix import PrefixIndex
from fastslow.engine.kv.state.layout import UNFOLDED, StateLayout, wide
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints

EVERY = 256  # tokens from one snapshot of a long prompt to the next
KEPT = 4  # of these, besides those at marks
OPENING = 8  # tokens at a prompt's end that a chat's next turn may leave out: the template's opening of an answer


class RunningStates:
    """The memory of running states, in places: each of the first has the state of a request, the others snapshots.

    bytes: of a snapshot, and of a request, which has rows that are not folded in, too. `state[layer]`: its parts, each
    [places + snapshots, ...]. `rows[layer]`: the parts that a row adds, each [places, UNFOLDED, ...]: those
    of the row at position p of a request are at p % UNFOLDED, until it is folded in.

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
        self.bytes = layout.snapshot_bytes(dtype), layout.request_bytes(dtype)
        dtype = wide(dtype)
        self.state = {
            n: tuple(lazy_zeros((places + snapshots, *shape), dtype, device) for shape in s.shapes)
            for n, s in layout.running.items()
        }
        self.rows = {
            n: tuple(lazy_zeros((places, UNFOLDED, *shape), dtype, device) for shape in s.inputs)
            for n, s in layout.running.items()
        }
        self._parts, self._rings = (
            [part for parts in some.values() for part in parts] for some in (self.state, self.rows)
        )
        self._addresses: dict[tuple[int, ...], NDArray[np.uint64]] = {}

    def addresses(self, layers: tuple[int, ...], parts: int, added: int) -> NDArray[np.uint64]:
        """Where the parts of these layers begin, and then those that a row adds: [layers, parts + added]; 0: there is
        none."""
        if (known := self._addresses.get(layers)) is None:
            known = self._addresses[layers] = np.zeros((len(layers), parts + added), np.uint64)
            for row, n in zip(known, layers, strict=True):
                for first, some in ((0, self.state.get(n, ())), (parts, self.rows.get(n, ()))):
                    row[first : first + len(some)] = [part.data_ptr() for part in some]
        return known

    def clear(self, place: int, layers: Collection[int] | None = None) -> None:
        """Let the state be that of no text, in all layers or some."""
        some = self.state if layers is None else layers
        for part in (part for n in some for part in self.state[n]):
            part[place].zero_()

    def copy(self, source: int, target: int) -> None:
        """Copy the state of one place to another."""
        for part in self._parts:
            part[target].copy_(part[source])

    def move(self, place: int, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy the row of position src[i] to dst[i], as if all were read before any is written."""
        for part in self._rings:
            part[place, _ring(dst)] = part[place, _ring(src)]


class StateCounts(NamedTuple):
    """Places of running states, those that requests have, and those of snapshots; the bytes of both together."""

    places: int = 0
    used: int = 0
    cached: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, each: Sequence[StatePlaces]) -> StateCounts:
        """Those of all ranks together."""
        return cls(*map(sum, zip(*(one.counts for one in each)))) if each else cls()


class StatePlaces:
    """Who has which place of the running states.

    A request has one from when it is opened to its end. A snapshot belongs to a published page, and holds the state
    at its end. Requests that begin with the page's text begin with the snapshot. It goes with its page; where none is
    free, the least recently used one makes room.

    Snapshots are made at marks: before a prompt's last tokens, where it leaves a text that goes on otherwise, each
    EVERY tokens of it, and at the end of the answer so far. So a chat's next turn finds one where it begins to
    differ, whether its template repeats the answer as it was or not. A text keeps the latest of each kind.
    Marks where texts part: Pan et al. 2024, arXiv 2411.19379.

    Places that no request has are lent to snapshots; one of those makes room where a request begins.

    free, spare: places of requests, and of snapshots, that nobody has. snapshots: by page, least recently used first.
    cheap: pages whose snapshots make room before others: another one of the text saves nearly as much. texts: how many
    are known to go on from a snapshot, by page. kept: pages whose snapshots make no room.
    """

    def __init__(self, states: RunningStates, page_size: int) -> None:
        self.states = states
        self._page_size = page_size
        self._every = math.lcm(EVERY, page_size)
        self.free = list(range(states.places))
        self._lent = range(states.places)
        self._own = range(states.places, states.places + states.snapshots)
        self.spare = list(self._own)
        self.snapshots: OrderedDict[int, int] = OrderedDict()
        self.cheap, self.texts = set[int](), Counter[int]()
        self.kept: Collection[int] = ()

    @property
    def counts(self) -> StateCounts:
        """What is in use now. Any thread may ask."""
        places, cached = self._own.stop, len(self.snapshots)
        used = max(0, places - cached - len(self.free) - len(self.spare))
        state, request = self.states.bytes
        return StateCounts(places, used, cached, used * request + cached * state)

    def covered(self, pages: Sequence[int]) -> Sequence[int]:
        """These pages of a text, up to the last one that has a snapshot."""
        last = max((n for n, page in enumerate(pages) if page in self.snapshots), default=-1)
        return pages[: last + 1]

    @property
    def able(self) -> bool:
        """Tell whether one more request could begin."""
        return bool(self.free) or self._least(self._lent) >= 0

    def begin(self, table: PageTable) -> bool:
        """Give the request of a table a place, with the state at the end of its pages. False: there is none."""
        if table.place >= 0:
            return True
        if not self.able:
            return False
        source = -1
        if table.valid:
            source = self.snapshots[table.last]
            self.snapshots.move_to_end(table.last)
            self.texts[table.last] += 1
            self._pass_over(table)
        if not self.free:
            self.forget(self._least(self._lent))
        table.place, table.folded = self.free.pop(), table.valid
        if source < 0:
            self.states.clear(table.place)
        elif source != table.place:
            self.states.copy(source, table.place)
        return True

    def end(self, table: PageTable) -> None:
        """Take the place of a request back, and those of snapshots that no page has yet."""
        if table.place >= 0:
            self._give(table.place)
            table.place = -1
        for place in table.passed.values():
            self._give(place)
        table.passed.clear()

    def keep(self, pages: Collection[int]) -> None:
        """Let the snapshots of these pages make no room from now on. None stays where a request may begin."""
        self.kept = pages
        for page in pages:
            if (place := self.snapshots.get(page, -1)) in self._lent:
                if not self.spare:
                    self.forget(self._least(self._own))
                if self.spare:
                    self.snapshots[page] = self.spare.pop()
                    self.states.copy(place, self.snapshots[page])
                    self._give(place)

    def rows(self, table: PageTable, rows: Sequence[int], fold_to: int) -> RunningRows:
        """See `KVCache.running`."""
        folded, first = table.folded, rows[0]
        earlier = range(folded, first)
        folds = stable = 0
        if fold_to >= first:
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
            if page not in published or page in self.snapshots:
                self._give(place)
                continue
            self.snapshots[page] = place
            if position == table.parted:
                self.texts[page] = 2
            elif position != self._turn(table):
                self.cheap.add(page)
                if position >= table.read:
                    table.tail = page
                elif position % self._every == 0:
                    table.regular.append(page)
                    self.snapshots.move_to_end(page, last=False)
        table.passed.clear()
        while len(table.regular) > KEPT:
            self._drop(table.regular.pop(0))

    def forget(self, page: int) -> None:
        """The page will hold something else."""
        self.cheap.discard(page)
        del self.texts[page]
        if (place := self.snapshots.pop(page, None)) is not None:
            self._give(place)

    def _pass_over(self, table: PageTable) -> None:
        """Let the snapshots that a request has begun after make room first, but for those of several texts."""
        for page in reversed(table.pages):
            if page in self.snapshots and self.texts[page] < 2:
                self.cheap.add(page)
                self.snapshots.move_to_end(page, last=False)

    def _turn(self, table: PageTable) -> int:
        """The position at which the next turn of a chat may leave the text: before the template's opening."""
        return (table.read - OPENING) // self._page_size * self._page_size

    def _passed(self, table: PageTable, start: int) -> tuple[tuple[int, int], ...]:
        """Places for the states that the request passes from `start` to the last row folded in now."""
        if table.digest is None:
            return ()
        stop, size, every, read = table.folded, self._page_size, self._every, table.read
        answer = stop // size * size  # of its snapshots the latest one is kept
        marks = {*range((start // every + 1) * every, min(stop + 1, read), every)}
        marks |= {answer} if answer >= read else set()
        dear = {table.parted, self._turn(table)}
        marks |= dear
        found: list[tuple[int, int]] = []
        for mark in sorted(
            (mark for mark in marks if start < mark <= stop), key=dear.__contains__, reverse=True
        ):
            place = mark // size
            if place <= table.sealed and table.pages[place - 1] in self.snapshots:
                continue
            if mark == answer >= read:
                self._drop(table.tail)
            if (to := self._spare(mark in dear)) >= 0:
                table.passed[mark] = to
                found.append((mark - start, to))
        return tuple(sorted(found))

    def _drop(self, page: int) -> None:
        """Give up a snapshot, if it is no more than another of its text."""
        if page in self.cheap and page not in self.kept:
            self.forget(page)

    def _spare(self, dear: bool) -> int:
        """A place for one more snapshot, which others make room for; -1: none does. dear: also those that are not
        cheap."""
        if not self.spare and not self.free:
            every = range(self._own.stop)
            self.forget(self._least(every, dear))
        free = self.spare or self.free
        return free.pop() if free else -1

    def _least(self, places: range, dear: bool = True) -> int:
        """The page whose snapshot, in one of these places, makes room first; -1: none does."""
        able = [p for p, place in self.snapshots.items() if place in places and p not in self.kept]
        return next((p for p in able if p in self.cheap), able[0] if able and dear else -1)

    def _give(self, place: int) -> None:
        """Take a place back."""
        (self.free if place in self._lent else self.spare).append(place)


def _ring(positions: Sequence[int]) -> Ints:
    return np.asarray(positions, dtype=np.int64) % UNFOLDED
