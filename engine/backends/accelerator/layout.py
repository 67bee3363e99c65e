"""Who sees what, for devices that read keys block by block.

Rows in a line after a text whose keys lie in blocks make *runs*: a kernel reads the blocks by their
numbers. The rest, the branches of a tree and the drafts that hang on scattered slots, is the *tail*:
few rows, and few keys that no block table can name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.types import Ints, Rows


@dataclass(frozen=True, slots=True)
class BlockTables:
    """n runs of rows, each over the blocks of one text.

    query_ends: rows up to and with each run's. seq_lens: keys that each run's last row sees. tables:
    int64 [n, W], the numbers of the blocks, filled up with 0. window: how many of these keys a row
    sees, itself and those just before it; 0 = all.
    """

    query_ends: list[int]
    seq_lens: list[int]
    tables: Ints
    window: int = 0

    @classmethod
    def of(cls, runs: list[tuple[int, int, Ints]], window: int = 0) -> BlockTables:
        """From (rows, keys, blocks) of each run."""
        tables = np.zeros((len(runs), max(len(blocks) for *_, blocks in runs)), dtype=np.int64)
        for table, (_, _, blocks) in zip(tables, runs, strict=True):
            table[: len(blocks)] = blocks
        query_ends = np.cumsum([rows for rows, *_ in runs]).tolist()
        return cls(query_ends, [keys for _, keys, _ in runs], tables, window)


LINE = 128  # rows of a tail's line that are a chain
_NONE = np.empty(0, dtype=np.int64)

Array = TypeVar("Array")
Tables = TypeVar("Tables")
A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tail(Generic[Array, Tables]):
    """R rows that see single slots, maybe after a text in blocks which each of them sees whole.

    rows: int64 [R] of the step. runs: over the texts; None: every key is among the slots. blind:
    bool [R], no text in blocks: what the run gives does not count. gather: int64 [B, Q], which of
    the R rows stand in each of B lines, filled up with any. places: int64 [R], the entry of [B * Q] that
    is a row's. slots: int64 [B, W]. hidden: bool [B, Q, W], the slots that a row does not see.
    """

    rows: Array
    runs: Tables | None
    blind: Array
    gather: Array
    places: Array
    slots: Array
    hidden: Array

    def mapped(self, array: Callable[[Array], A], tables: Callable[[Tables], T]) -> Tail[A, T]:
        """The same in another form, as tensors or on another device."""
        return Tail(
            array(self.rows),
            None if self.runs is None else tables(self.runs),
            *(array(x) for x in (self.blind, self.gather, self.places, self.slots, self.hidden)),
        )


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """All rows of a step: int64 `rows` in `chains` (None: every row, in order), others in `tail`."""

    rows: Ints | None
    chains: BlockTables | None
    tail: Tail[NDArray[Any], BlockTables] | None


def attention_layout(
    rows: Rows, block: int, most: int, merged: bool, window: int = 0, chained: bool = True
) -> AttentionLayout:
    """Lay out a step.

    block: slots of a block. most: rows of a run. merged: whether the device can merge what a
    tail's row sees in blocks and in single slots; else all is among the slots. window: how many
    tokens a row sees, 0 = all; no block in front of it is read. chained: whether the device runs
    chains of such rows; else all rows are the tail's.
    """
    chain_rows: list[Ints] = []
    chains: list[tuple[int, int, Ints]] = []
    lines: list[_Line] = []
    for b, context in enumerate(rows.contexts):
        start, stop = int(rows.starts[b]), int(rows.starts[b + 1])
        parents = rows.parents[start:stop]
        slots = np.concatenate((context, rows.slots[start:stop]))
        known, trunk = _aligned(context, block), 0
        if known == len(context):
            head = known - known % block
            trunk = max(_aligned(slots[head : known + _trunk(parents)], block) - (known - head), 0)
        text = slots[: known + trunk]
        if chained:
            for first in range(0, trunk, most):
                last = min(first + most, trunk)
                unseen = (known + first + 1 - window) // block if window else 0
                skipped = max(unseen, 0) * block
                table = text[skipped : known + last : block] // block
                chains.append((last - first, known + last - skipped, table))
            if trunk:
                chain_rows.append(np.arange(start, start + trunk))
        request = _Request(
            start,
            slots,
            np.concatenate((np.arange(len(context)), rows.positions[start:stop])),
            parents,
            window,
            block,
        )
        for first in range(0, 0 if chained else trunk, LINE):
            last = min(first + LINE, trunk)
            lines.append(request.line(first, last, known + first if merged else 0))
        if trunk < stop - start:
            lines.append(request.line(trunk, stop - start, len(text) if merged else 0))
    laid = BlockTables.of(chains, window) if chains else None
    if not lines:
        return AttentionLayout(None, laid, None)
    tail = _tail(lines, most, merged)
    return AttentionLayout(np.concatenate([*chain_rows, _NONE]), laid, tail)


@dataclass(frozen=True, slots=True)
class _Request:
    """What a request's rows see. start: its first row. slots, positions: of its committed tokens and
    then of its rows. parents: of the rows."""

    start: int
    slots: Ints
    positions: Ints
    parents: Ints
    window: int
    block: int

    def line(self, first: int, last: int, text: int) -> _Line:
        """Of rows first .. last, which see all of the first `text` slots, the ones that lie in blocks,
        if these are in their windows."""
        before = len(self.slots) - len(self.parents)
        own = np.arange(text, before + last)
        seen = _seen(self.parents[first:last] - first, before + first - text)
        rows, low = np.arange(self.start + first, self.start + last), 0
        if self.window:
            firsts = self.positions[before + first : before + last] - self.window + 1
            low = min(-(-max(int(firsts.max()), 0) // self.block) * self.block, text)
            front = np.arange(min(max(int(firsts.min()), 0), low), low)
            own = np.concatenate((front, own))
            seen = np.pad(seen, ((0, 0), (len(front), 0)), constant_values=True)
            seen &= self.positions[own] >= firsts[:, None]
            kept = seen.any(0)
            own, seen = own[kept], seen[:, kept]
        table = self.slots[low : text : self.block] // self.block
        return _Line(rows, table, text - low, self.slots[own], seen)


@dataclass(frozen=True, slots=True)
class _Line:
    """The tail's rows of one request."""

    rows: Ints
    table: Ints
    keys: int  # in the table's blocks
    slots: Ints
    seen: NDArray[np.bool_]  # [rows, slots]


def _tail(lines: list[_Line], most: int, merged: bool) -> Tail[NDArray[Any], BlockTables]:
    count, width = max(len(x.rows) for x in lines), max(len(x.slots) for x in lines)
    gather = np.zeros((len(lines), count), dtype=np.int64)
    slots = np.zeros((len(lines), width), dtype=np.int64)
    hidden = np.ones((len(lines), count, width), dtype=np.bool_)
    hidden[..., 0] = False  # a row that only fills up sees something
    places: list[Ints] = []
    runs: list[tuple[int, int, Ints]] = []
    first = 0
    for b, line in enumerate(lines):
        size = len(line.rows)
        gather[b, :size] = np.arange(first, first + size)
        slots[b, : len(line.slots)] = line.slots
        slots[b, len(line.slots) :] = line.slots[0]
        hidden[b, :size, : len(line.slots)] = ~line.seen
        places.append(b * count + np.arange(size))
        first += size
        for i in range(0, size, most):
            # a run over nothing reads one key, which `blind` takes back
            blocks = line.table if line.keys else np.zeros(1, dtype=np.int64)
            runs.append((min(most, size - i), max(line.keys, 1), blocks))
    return Tail(
        np.concatenate([x.rows for x in lines]),
        BlockTables.of(runs) if merged and any(x.keys for x in lines) else None,
        np.concatenate([np.full(len(x.rows), not x.keys) for x in lines]),
        gather,
        np.concatenate(places),
        slots,
        hidden,
    )


def _aligned(slots: Ints, block: int) -> int:
    """How many of these slots, from the first on, lie in blocks as their places in the text do."""
    if not len(slots):
        return 0
    firsts = np.repeat(slots[::block], block)[: len(slots)]
    fits = (slots - firsts == np.arange(len(slots)) % block) & (firsts % block == 0)
    return len(slots) if fits.all() else int(fits.argmin())


def _trunk(parents: Ints) -> int:
    """How many rows, from the first on, every later row descends from, one after the other."""
    follows = parents == np.arange(-1, len(parents) - 1)
    if follows.all():
        return len(parents)
    first = int(follows.argmin())
    later = parents[first:]
    return int(later[later < first].min()) + 1


def _seen(parents: Ints, before: int) -> NDArray[np.bool_]:
    """[rows, before + rows]: every row sees the slots before, its ancestors and itself.

    parents: below 0 for a row whose parent is not among these.
    """
    count = len(parents)
    seen = np.zeros((count, before + count), dtype=np.bool_)
    seen[:, :before] = True
    for row, parent in enumerate(parents.tolist()):
        if parent >= 0:
            seen[row] = seen[parent]
        seen[row, before + row] = True
    return seen
