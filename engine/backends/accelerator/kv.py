"""Keys and values in blocks of 128 slots, as accelerators read them; and which of them a step's rows see.

Rows in a line after a text whose keys lie in blocks make *runs*: a kernel reads the blocks by their
numbers. The rest, the branches of a tree and the drafts that hang on scattered slots, is the *tail*:
few rows, and few keys that no block table can name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.kv.state.storage import KVStorage, Sides
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints

BLOCK = 128  # slots of a block
SPARE = 256  # slots after the last page: rows that only fill up a step write there
LINE = 128  # rows of a tail's line that are a chain
_NONE = np.empty(0, dtype=np.int64)


class BlockStorage(KVStorage):
    """Keys and values, `k[layer]` and `v[layer]`, each [blocks, 128, kv_heads, width].

    A page is one block, so a text whose positions lie in blocks in their order is read by its block
    numbers. After the pages lie `SPARE` more slots, from `spare` on, that no request uses.
    """

    page_size = BLOCK
    tile = 0
    has_windows = False

    @classmethod
    def width(cls, dim: int) -> int:
        """Elements that a head's key or value takes."""
        return dim

    @classmethod
    def token_bytes(cls, layout: StateLayout, dtype: torch.dtype) -> int:
        layers, kv_heads, dim = layout.alike(cls.__name__)
        return 2 * layers * kv_heads * cls.width(dim) * dtype.itemsize

    def _allocate(self) -> tuple[Tensor, ...]:
        blocks = -(-self.slots // BLOCK)
        self.spare = blocks * BLOCK
        layers, self.kv_heads, self.dim = self.layout.alike(type(self).__name__)
        shape = self._block_shape(blocks + SPARE // BLOCK, self.kv_heads, self.width(self.dim))
        return torch.zeros((2, layers, *shape), dtype=self.dtype, device=self.device).unbind()

    def _block_shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, BLOCK, kv_heads, width

    def _read(self, part: Sides, slots: Ints) -> Sides:
        at, dim = self._places(slots), self.dim
        return tuple(side[:, *at][..., :dim] for side in part)

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        at, dim = self._places(slots), self.dim
        for side, fresh in zip(part, given, strict=True):
            side[:, *at, :, :dim] = fresh.to(self.dtype)

    def _places(self, slots: Ints) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(slots, device=self.device)
        return at // BLOCK, at % BLOCK


class LatentStorage(BlockStorage):
    """Latents in the order of slots, [slots, 1, width], each 128 a block: values are the first numbers of keys."""

    @classmethod
    def token_bytes(cls, layout: StateLayout, dtype: torch.dtype) -> int:
        return layout.token_bytes(dtype)

    def _allocate(self) -> tuple[Tensor, ...]:
        self.spare = self.slots + -self.slots % BLOCK
        return KVStorage._allocate(self)

    def _room(self, row: RowState) -> int:
        return self.spare + SPARE

    def _read(self, part: Sides, slots: Ints) -> Sides:
        return KVStorage._read(self, part, slots)

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        KVStorage._write(self, part, slots, given)


class WideStorage(BlockStorage):
    """Blocks whose rows are padded with zeros to the widths that some kernels read."""

    widths: ClassVar[tuple[int, ...]] = (128, 192)

    @classmethod
    def width(cls, dim: int) -> int:
        return next((width for width in cls.widths if width >= dim), dim)


class FractalStorage(WideStorage):
    """Blocks in the fractal order (NZ) of small NPUs: [blocks, kv_heads * width / 16, 128, 16]."""

    widths = (128,)

    def _block_shape(self, blocks: int, kv_heads: int, width: int) -> tuple[int, ...]:
        return blocks, kv_heads * width // 16, BLOCK, 16

    def _read(self, part: Sides, slots: Ints) -> Sides:
        at = self._places(slots)
        return tuple(self._rows(side, *at) for side in part)

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        blocks, places = self._places(slots)
        for side, fresh in zip(part, given, strict=True):
            room = self.width(self.dim) - self.dim
            padded = torch.nn.functional.pad(fresh.to(self.dtype), (0, room))
            # two index tensors apart from each other: their axis comes first
            side[:, blocks, :, places] = padded.reshape(*padded.shape[:2], -1, 16).transpose(0, 1)

    def _rows(self, side: Tensor, blocks: Tensor, places: Tensor) -> Tensor:
        found = side[:, blocks, :, places].transpose(0, 1)
        return found.reshape(*found.shape[:2], self.kv_heads, -1)[..., : self.dim]


@dataclass(frozen=True, slots=True)
class BlockTables:
    """n runs of rows, each over the blocks of one text.

    query_ends: rows up to and with each run's. seq_lens: keys that each run's last row sees. tables:
    int64 [n, W], the numbers of the blocks, filled up with 0. window: how many of these keys a row
    sees, itself and those just before it; 0 = all. tensors: what `PagedOps.attention_metadata` gives of them.
    """

    query_ends: list[int]
    seq_lens: list[int]
    tables: Ints
    window: int = 0
    tensors: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[int, int, Ints]], window: int = 0) -> BlockTables:
        """From (rows, keys, blocks) of each run."""
        tables = np.zeros((len(runs), max(len(blocks) for *_, blocks in runs)), dtype=np.int64)
        for table, (_, _, blocks) in zip(tables, runs, strict=True):
            table[: len(blocks)] = blocks
        query_ends = np.cumsum([rows for rows, *_ in runs]).tolist()
        return cls(query_ends, [keys for _, keys, _ in runs], tables, window)


@dataclass(frozen=True, slots=True)
class Tail:
    """R rows that see single slots, maybe after a text in blocks which each of them sees whole.

    runs: over the texts; None: every key is among the slots. rows: int64 [R] of the step. blind: bool [R], no text in
    blocks: what the run gives does not count. gather: int64 [B, Q], which of the R rows stand in each of B lines,
    filled up with any. places: int64 [R], the entry of [B * Q] that is a row's. slots: int64 [B, W]. hidden: bool
    [B, Q, W], the slots that a row does not see.
    """

    runs: BlockTables | None
    rows: Tensor
    blind: Tensor
    gather: Tensor
    places: Tensor
    slots: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """All rows of a step: int64 `rows` in `chains` (None: every row, in order), others in `tail`."""

    rows: Tensor | None
    chains: BlockTables | None
    tail: Tail | None


def attention_layout(
    rows: Rows, block: int, most: int, merged: bool, window: int = 0, chained: bool = True
) -> AttentionLayout:
    """Lay out a step, on the host.

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
        positions = np.concatenate((np.arange(len(context)), rows.positions[start:stop]))
        seen = _SeenText(start, slots, positions, parents, window, block)
        for first in range(0, 0 if chained else trunk, LINE):
            last = min(first + LINE, trunk)
            lines.append(seen.line(first, last, known + first if merged else 0))
        if trunk < stop - start:
            lines.append(seen.line(trunk, stop - start, len(text) if merged else 0))
    laid = BlockTables.of(chains, window) if chains else None
    if not lines:
        return AttentionLayout(None, laid, None)
    tail = _tail(lines, most, merged)
    return AttentionLayout(torch.from_numpy(np.concatenate([*chain_rows, _NONE])), laid, tail)


@dataclass(frozen=True, slots=True)
class _SeenText:
    """Text that a request's rows see. slots, positions: of its committed tokens and then of its rows."""

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


def _tail(lines: list[_Line], most: int, merged: bool) -> Tail:
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
    rows = np.concatenate([x.rows for x in lines])
    blind = np.concatenate([np.full(len(x.rows), not x.keys) for x in lines])
    arrays = rows, blind, gather, np.concatenate(places), slots, hidden
    texts = BlockTables.of(runs) if merged and any(x.keys for x in lines) else None
    return Tail(texts, *map(torch.from_numpy, arrays))


def _aligned(slots: Ints, block: int) -> int:
    """Count the slots, from the first on, that lie in blocks as their places in the text do."""
    if not len(slots):
        return 0
    firsts = np.repeat(slots[::block], block)[: len(slots)]
    fits = (slots - firsts == np.arange(len(slots)) % block) & (firsts % block == 0)
    return len(slots) if fits.all() else int(fits.argmin())


def _trunk(parents: Ints) -> int:
    """Count the rows, from the first on, that follow one after the other and that every later row descends from."""
    follows = parents == np.arange(-1, len(parents) - 1)
    if follows.all():
        return len(parents)
    first = int(follows.argmin())
    later = parents[first:]
    return int(later[later < first].min()) + 1


def _seen(parents: Ints, before: int) -> NDArray[np.bool_]:
    """[rows, before + rows]: a row sees the slots before, its ancestors, itself. A parent below 0 is not among them."""
    count = len(parents)
    seen = np.zeros((count, before + count), dtype=np.bool_)
    seen[:, :before] = True
    for row, parent in enumerate(parents.tolist()):
        if parent >= 0:
            seen[row] = seen[parent]
        seen[row, before + row] = True
    return seen
