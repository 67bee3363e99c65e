"""Who sees what: the rows of a step laid out as lines of attention.

A line is a path of rows from the context to a leaf. A row's keys lie at their place in the text,
whatever siblings stand between them in the step, so its sums run in the order of plain decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ops import Keys, Ops
from fastslow.engine.types import Ints, Rows

MAX_ROWS = 128  # a longer prompt chunk is cut, so that its first rows do not read its last keys
MAX_SCORES = 1 << 22  # keys times rows of the lines that share one call, to bound memory


@dataclass(frozen=True, slots=True)
class Line:
    """Rows of one path and the slots of all that the last of them sees; row i sees seen[i]."""

    rows: Ints
    slots: Ints
    seen: Ints


@dataclass(frozen=True, slots=True)
class Lines:
    """L lines of P rows each that are computed together.

    gather: int64 [L * P], the row of the step behind each row, padding repeats one; None: all rows
    of the step in order. scatter and rows: int64 [R], the entries of [L * P] that are real, and the
    rows that they give.
    """

    count: int
    gather: Tensor | None
    scatter: Tensor | None
    rows: Tensor | None
    keys: Keys


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
    """Root-to-leaf paths, and how many rows at the end of each no earlier path holds."""
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
    rows: Rows, padded: int, ops: Ops, group: int, dtype: torch.dtype, device: torch.device
) -> list[Lines]:
    """The calls of attention that a step makes, alike for every layer.

    padded: rows of the step with padding. group: query heads per KV head. dtype: of the scores.
    """
    alike: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for line in lines_of(rows):
        size = len(line.rows) + -len(line.rows) % ops.rows
        alike[size, -(-len(line.slots) // ops.block)].append(line)
    calls: list[Lines] = []
    for (size, blocks), lines in alike.items():
        most = max(1, MAX_SCORES // (size * blocks * ops.block))
        for i in range(0, len(lines), most):
            some = lines[i : i + most]
            keys = _keys(some, size, blocks, ops.block, group, dtype, device)
            if size == padded and np.array_equal(some[0].rows, np.arange(len(rows.tokens))):
                return [Lines(1, None, None, None, keys)]
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
    )


def _keys(
    lines: list[Line],
    size: int,
    blocks: int,
    block: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Keys:
    # a padding row sees one key; a padding key is the line's own, so that masked ones stay finite
    seen = np.stack([np.pad(x.seen, (0, size - len(x.seen)), constant_values=1) for x in lines])
    hidden = np.arange(blocks * block).reshape(blocks, 1, block) >= seen[:, None, :, None]
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    bias = bias.repeat_interleave(group, dim=2)[:, None].to(device)
    if len(lines) == 1 and (run := as_run(lines[0].slots)) is not None:
        return Keys(run, bias)
    slots = [np.pad(x.slots, (0, blocks * block - len(x.slots)), "edge") for x in lines]
    return Keys(torch.from_numpy(np.concatenate(slots)).to(device), bias)


def as_run(slots: Ints) -> slice | None:
    """The slice that these slots are, if they are one ascending run of at least one."""
    if not len(slots):
        return None
    first = int(slots[0])
    if np.array_equal(slots, np.arange(first, first + len(slots))):
        return slice(first, first + len(slots))
    return None
