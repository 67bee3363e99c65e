"""The lines of attention of a step: rows from the context to a leaf, and who sees what.

A row's keys lie at their place in the text, whatever siblings stand between them in the step, so its sums run in the
order of plain decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.state.windows import PageMap
from fastslow.engine.model.ops import NO_FRONT, Keys, Ops, RowFront, wide
from fastslow.engine.model.parts import Step, as_run
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints

MAX_ROWS = 128  # a longer prompt chunk is cut, so that its first rows do not read its last keys
MAX_SCORES = 1 << 22  # keys times rows of the lines that share one call, to bound memory


@dataclass(frozen=True, slots=True)
class Line:
    """Rows of one path and the slots of all that the last of them sees; row i sees seen[i]."""

    rows: Ints
    slots: Ints
    seen: Ints

    def within(self, window: int, block: int, where: PageMap | None = None) -> Line:
        """Without the whole blocks of keys before its first row's window, so that sums keep their blocks; slots as
        they lie in layers with this window."""
        unseen = max(0, int(self.seen[0]) - window) // block * block if window else 0
        slots = self.slots[unseen:]
        return Line(self.rows, slots if where is None else where(slots), self.seen - unseen)


@dataclass(frozen=True, slots=True)
class Lines:
    """L lines of P rows each, computed as one batch.

    gather: int64 [L * P], the row of the step that each row is, padding repeats the last; None: all in order.
    scatter, rows: int64 [R], the entries of [L * P] that are real, and the rows that they give. most: keys that some
    row sees, windows aside."""

    count: int
    gather: Tensor | None
    scatter: Tensor | None
    rows: Tensor | None
    keys: Keys
    most: int


def lines_of(rows: Rows) -> Iterator[Line]:
    """Every row of the step, in exactly one line."""
    for b, context in enumerate(rows.contexts):
        start, stop = int(rows.starts[b]), int(rows.starts[b + 1])
        for path, fresh in _paths(rows.parents[start:stop]):
            for first in range(len(path) - fresh, len(path), MAX_ROWS):
                last = min(first + MAX_ROWS, len(path))
                own = start + path[:last]
                yield Line(
                    own[first:],
                    np.concatenate((context, rows.slots[own])),
                    len(context) + np.arange(first + 1, last + 1),
                )


def _paths(parents: Ints) -> Iterator[tuple[Ints, int]]:
    """The rows from the root to every leaf, and how many at its end no earlier leaf had."""
    count = len(parents)
    if np.array_equal(parents, np.arange(-1, count - 1)):
        if count:
            yield np.arange(count), count
        return
    taken: set[int] = set()
    for leaf in sorted(set(range(count)) - set(parents.tolist())):
        path = [leaf]
        while (parent := int(parents[path[-1]])) >= 0:
            path.append(parent)
        fresh = sum(row not in taken for row in path)
        taken.update(path)
        yield np.array(path[::-1]), fresh


def layout(
    rows: Rows,
    padded: int,
    ops: Ops,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int = 0,
    where: PageMap | None = None,
) -> list[Lines]:
    """The calls of attention that a step makes, alike for all layers of this window (0: sees all).

    padded: rows of the step with padding. group: query heads per KV head. dtype: of the scores. where: see
    `KVStorage.pages_of`."""
    alike: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for whole in lines_of(rows):
        line = whole.within(window, ops.block, where)
        size = len(line.rows) + -len(line.rows) % ops.rows
        alike[size, -(-len(line.slots) // ops.block)].append(line)
    calls: list[Lines] = []
    for (size, blocks), lines in alike.items():
        most = max(1, MAX_SCORES // (size * blocks * ops.block))
        for i in range(0, len(lines), most):
            some = lines[i : i + most]
            keys = _keys(some, size, blocks, ops.block, group, dtype, device, window)
            if size == padded and np.array_equal(some[0].rows, np.arange(len(rows.tokens))):
                return [Lines(1, None, None, None, keys, int(some[0].seen[-1]))]
            calls.append(_scattered(some, size, keys, device))
    return calls


def _scattered(lines: list[Line], size: int, keys: Keys, device: torch.device) -> Lines:
    gather = np.concatenate([np.pad(x.rows, (0, size - len(x.rows)), "edge") for x in lines])
    real = np.concatenate([i * size + np.arange(len(x.rows)) for i, x in enumerate(lines)])
    return Lines(
        len(lines),
        torch.from_numpy(gather).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(gather[real]).to(device),
        keys,
        max(int(x.seen[-1]) for x in lines),
    )


def _keys(
    lines: list[Line],
    size: int,
    blocks: int,
    block: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int,
) -> Keys:
    # a padding row sees one key; a padding key is the line's own, so that masked ones stay finite
    seen = np.stack([np.pad(x.seen, (0, size - len(x.seen)), constant_values=1) for x in lines])
    places, seen = np.arange(blocks * block).reshape(blocks, 1, block), seen[:, None, :, None]
    hidden = places >= seen
    if window:
        hidden |= places < seen - window
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    bias = bias.repeat_interleave(group, dim=2)[:, None].to(device)
    if len(lines) == 1 and (run := as_run(lines[0].slots)) is not None:
        return Keys(run, bias)
    slots = [np.pad(x.slots, (0, blocks * block - len(x.slots)), "edge") for x in lines]
    return Keys(torch.from_numpy(np.concatenate(slots)).to(device), bias)


def lines_seen(
    step: Step, group: int, window: int = 0, where: PageMap | None = None
) -> Sequence[Lines]:
    """What all layers with this window see of a step, see `layout`."""
    dtype = wide(step.dtype)
    return step.once(
        ("lines", window, group),
        lambda: layout(step.rows, step.padded, step.ops, group, dtype, step.device, window, where),
    )


def attend(
    q_PHD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    step: Step,
    window: int = 0,
    front: RowFront = NO_FRONT,
    where: PageMap | None = None,
    several: Sequence[Lines] | None = None,
) -> Tensor:
    """[P, heads * value width] of scaled queries over what each row sees; window: see `RowState`, where: see
    `KVStorage.pages_of`. several: what rows see, where it is not what all of this window see."""
    if several is None:
        several = lines_seen(step, q_PHD.shape[1] // k_SKD.shape[1], window, where)
    first = several[0]
    if first.gather is None:
        return step.ops.attend(q_PHD[None], k_SKD, v_SKD, first.keys, front)[0]
    out = q_PHD.new_zeros(q_PHD.shape[0], q_PHD.shape[1] * v_SKD.shape[-1])
    for lines in several:
        assert lines.gather is not None and lines.rows is not None
        assert lines.scatter is not None
        q = q_PHD.index_select(0, lines.gather).view(lines.count, -1, *q_PHD.shape[1:])
        part = step.ops.attend(q, k_SKD, v_SKD, lines.keys, front).flatten(0, 1)
        out.index_copy_(0, lines.rows, part.index_select(0, lines.scatter))
    return out
