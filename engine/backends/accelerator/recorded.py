"""Small steps, recorded once for each padded size and replayed.

A step of decoding or of verifying is many small kernels, and starting them one by one may take longer
than running them. Steps are filled up to a few sizes (requests, rows), each of which is recorded
when it comes for the second time. Rows that only fill up write to slots that no
request uses, run no routed expert, and are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage
from fastslow.engine.backends.accelerator.layout import (
    AttentionLayout,
    BlockTables,
    attention_layout,
)
from fastslow.engine.backends.accelerator.ops import Graph, PagedOps
from fastslow.engine.backends.accelerator.step import PagedStep, Result
from fastslow.engine.types import Floats, Rows

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # of rows, and of runs
MOST_CHUNK = 16  # rows of a request in a recorded step
MOST_RECORDED = 32  # every recording holds streams and memory

T = TypeVar("T", bound=np.generic)
Run = Callable[[PagedStep, BlockStorage, tuple[int, ...]], Result]
Key = tuple[int, int, int, tuple[int, ...], bool]


@dataclass(slots=True)
class Recording:
    """A graph, the tensors that it reads and those that it writes."""

    step: PagedStep
    result: Result
    graph: Graph


class Recorder:
    """Records and replays the steps of one decoder.

    Args:
        ops: the device's kernels.
        run: a step on the device.
        context: the longest text.
        groups: the model's.

    Attributes:
        replays: how many steps were replayed.
        recorded: how many were recorded.
    """

    def __init__(self, ops: PagedOps, run: Run, context: int, groups: int) -> None:
        self.replays = 0
        self.recorded = 0
        self._told = False
        self._ops = ops
        self._run = run
        self._context = context
        self._groups = groups
        # recordings hold addresses of the cache that they were made with
        self._kept: WeakKeyDictionary[BlockStorage, dict[Key, Recording | None]]
        self._kept = WeakKeyDictionary()

    def replay(
        self,
        rows: Rows,
        angles: tuple[Floats, Floats],
        kv: BlockStorage,
        features: tuple[int, ...],
    ) -> Result | None:
        """The step's result, its tensors valid until the next call; None: it is not recorded.

        angles: cosines and sines of the rows' positions, [T, head_dim / 2].
        """
        count = len(rows.tokens)
        if not self._ops.records or count > SIZES[-1]:
            return None
        if int(np.diff(rows.starts).max()) > MOST_CHUNK:
            return None
        layout = attention_layout(rows, BLOCK, self._ops.graph_rows, self._ops.merges)
        if layout.tail is not None or layout.chains is None:
            return None
        size = padded_size(len(layout.chains.seq_lens), count, self._ops.graph_rows)
        if size is None:
            return None
        most = min(-(-self._context // BLOCK), kv.spare // BLOCK)
        width = self._ops.width(layout.chains.tables.shape[1], max(most, 1))
        chains = fill_runs(layout.chains, size, width, kv.spare)
        filled = fill_rows(rows, size[1], kv.spare)
        angles = (_filled(angles[0], size[1]), _filled(angles[1], size[1]))
        step = PagedStep.of(
            filled, angles, AttentionLayout(None, chains, None), self._ops, self._groups
        )
        key = (*size, width, features, step.routed)
        kept = self._kept.setdefault(kv, {})
        if key not in kept:  # the first one sets up whatever the kernels keep
            kept[key] = None
            return None
        recording = kept[key] or self._record(key, step, kv, features)
        if recording is None:
            return None
        recording.step.fill(step)
        recording.graph.replay(chains.query_ends, chains.seq_lens)
        self.replays += 1
        found, count = recording.result, len(rows.outputs)
        return Result(
            found.logits[:count], found.best[:count], found.features[: len(rows.feature_rows)]
        )

    def _record(
        self, key: Key, step: PagedStep, kv: BlockStorage, features: tuple[int, ...]
    ) -> Recording | None:
        every = [r for kept in self._kept.values() for r in kept.values()]
        if len(every) - every.count(None) >= MOST_RECORDED:
            if not self._told:
                logger.info("{} sizes of steps are recorded, others are not", MOST_RECORDED)
            self._told = True
            return None
        still = step.to(kv.device)
        results: list[Result] = []
        graph = self._ops.record(lambda: results.append(self._run(still, kv, features)))
        recording = Recording(still, results[0], graph)
        self._kept[kv][key] = recording
        self.recorded += 1
        return recording


def padded_size(runs: int, rows: int, most: int) -> tuple[int, int] | None:
    """The smallest recorded size (runs, rows) that a step fits; each run added has 1 to `most` rows."""
    for larger in (n for n in SIZES if n >= rows):
        for wider in (n for n in SIZES if n >= runs):
            added = wider - runs
            if added <= larger - rows <= most * added:
                return wider, larger
    return None


def fill_runs(runs: BlockTables, size: tuple[int, int], width: int, spare: int) -> BlockTables:
    """With padding runs over unused keys, up to (runs, rows), and tables of `width`."""
    count, rows = size
    tables = np.full((count, width), 0, dtype=np.int64)
    known = runs.tables.shape
    tables[: known[0], : known[1]] = runs.tables
    tables[known[0] :, 0] = spare // BLOCK
    added = count - known[0]
    left = rows - runs.query_ends[-1]
    shares = [left // added + (i < left % added) for i in range(added)]
    query_ends = [
        *runs.query_ends,
        *(runs.query_ends[-1] + np.cumsum(shares, dtype=np.int64)).tolist(),
    ]
    return BlockTables(query_ends, [*runs.seq_lens, *shares], tables)


def fill_rows(rows: Rows, count: int, spare: int) -> Rows:
    """The step's rows up to `count`, and as many outputs and rows to see. Of no use but to run."""
    missing = count - len(rows.tokens)
    return replace(
        rows,
        tokens=_filled(rows.tokens, count),
        slots=np.concatenate((rows.slots, spare + np.arange(missing))),
        groups=_filled(rows.groups, count),
        outputs=_filled(rows.outputs, count),
        feature_rows=_filled(rows.feature_rows, count),
    )


def _filled(values: NDArray[T], count: int) -> NDArray[T]:
    return np.pad(values, [(0, count - len(values))] + [(0, 0)] * (values.ndim - 1))
