"""Small steps, recorded once for each padded size and replayed.

A step of decoding or of verifying is many small kernels, and starting them one by one may take longer
than running them. Steps are filled up to a few sizes (requests, rows), each of which is recorded
when it comes for the second time. Rows that only fill up write to slots that no
request uses, run no routed expert, and are never read.

Where recordings are many or large, the least recently used one makes room. Its size must then come
twice as often as before until it is recorded again, so sizes that come in turn are not recorded for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from fastslow.engine.backends.accelerator.kv import (
    BLOCK,
    AttentionLayout,
    BlockStorage,
    BlockTables,
)
from fastslow.engine.backends.accelerator.ops import Graph
from fastslow.engine.backends.accelerator.step import PagedStep, Result, Staging, StepPlan
from fastslow.engine.rows import Rows
from fastslow.engine.types import Floats

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # of rows, and of runs
MOST_CHUNK = 16  # rows of a request in a recorded step
MOST_RECORDED = 32  # every recording holds streams and memory
MOST_BYTES = 1 << 30  # of what recordings read and write, most of it logits; they share all else

T = TypeVar("T", bound=np.generic)
Run = Callable[[PagedStep, BlockStorage, tuple[int, ...]], Result]
Key = tuple[int, int, tuple[int, ...], tuple[int, ...], bool]


@dataclass(slots=True)
class Recording:
    """A graph, the tensors that it reads and those that it writes."""

    step: PagedStep
    result: Result
    graph: Graph

    @property
    def nbytes(self) -> int:
        memory = self.step.memory
        return sum(x.nbytes for x in self.result) + (0 if memory is None else memory.nbytes)


@dataclass(slots=True)
class StepSize:
    """A padded size that came. seen: how often since it was last recorded. wait: how often it must
    come to be recorded. used: the number of the replay that last used its recording."""

    seen: int = 0
    wait: float = 2  # what comes once is not worth it
    used: int = 0
    recording: Recording | None = None


class Recorder:
    """Records and replays the steps of one decoder, whose longest text is `context`.

    `replays` and `recorded` count steps, `failed` the sizes that could not be recorded.
    """

    def __init__(self, plan: StepPlan, staging: Staging, context: int) -> None:
        self.enabled = plan.ops.records and not plan.plain
        self.replays = self.recorded = self.failed = 0
        self._plan, self._ops = plan, plan.ops
        self._staging = staging
        self._context = context
        self._logged = False
        # recordings hold addresses of the cache that they were made with
        self._sizes: WeakKeyDictionary[BlockStorage, dict[Key, StepSize]] = WeakKeyDictionary()

    @property
    def kept(self) -> list[Recording]:
        """All recordings, the least recently used one first."""
        return [size.recording for size in self._recorded() if size.recording is not None]

    def replay(
        self,
        run: Run,
        rows: Rows,
        angles: tuple[Floats, Floats],
        kv: BlockStorage,
        features: tuple[int, ...],
    ) -> Result | None:
        """The step's result, its tensors valid until the next call; None: it is not recorded.

        run: a step on the device. angles: cosines and sines of the rows' positions, [T, D / 2].
        """
        count = len(rows.tokens)
        if not self.enabled or count > SIZES[-1]:
            return None
        if int(np.diff(rows.starts).max()) > MOST_CHUNK:
            return None
        layouts = self._plan.layouts(rows, self._ops.graph_rows)
        runs = [x.chains for x in layouts if x.chains is not None and x.tail is None]
        if len(runs) < len(layouts):
            return None
        shape = padded_size(len(runs[0].seq_lens), count, self._ops.graph_rows)
        if shape is None:
            return None
        widths = tuple(self._width(some, kv) for some in runs)
        routed = bool(rows.groups.any()) and self._plan.chosen > 0
        size = self._sizes.setdefault(kv, {}).setdefault(
            (*shape, widths, features, routed), StepSize()
        )
        size.seen += 1
        if size.recording is None and size.seen < size.wait:
            return None
        chains = [fill_runs(some, shape, width, kv.spare) for some, width in zip(runs, widths)]
        filled = fill_rows(rows, shape[1], kv.spare)
        angles = (_filled(angles[0], shape[1]), _filled(angles[1], shape[1]))
        laid = [AttentionLayout(None, some, None) for some in chains]
        step = PagedStep.of(filled, angles, laid, self._plan)
        recording = size.recording or self._record(run, size, step, kv, features)
        if recording is None:
            return None
        recording.step.fill(step, self._staging)
        recording.graph.replay([chains[place] for place in self._plan.layers if place is not None])
        self.replays += 1
        size.used = self.replays
        found, count, seen = recording.result, len(rows.outputs), len(rows.feature_rows)
        return Result(found.logits[:count], found.best[:count], found.features[:seen])

    def _width(self, runs: BlockTables, kv: BlockStorage) -> int:
        """Of the tables of a recorded step: those of windows are never wider than what a row sees."""
        most = max(min(-(-self._context // BLOCK), kv.spare // BLOCK), 1)
        if runs.window:
            most = min(most, -(-(runs.window + self._ops.graph_rows) // BLOCK) + 1)
        return self._ops.width(runs.tables.shape[1], most)

    def _record(
        self, run: Run, size: StepSize, step: PagedStep, kv: BlockStorage, features: tuple[int, ...]
    ) -> Recording | None:
        self._make_room(MOST_RECORDED - 1)
        still = step.to(kv.device, self._staging)
        results: list[Result] = []
        try:
            graph = self._ops.record(lambda: results.append(run(still, kv, features)))
        except RuntimeError as error:
            size.wait = math.inf  # it would fail again
            self.failed += 1
            said = "steps of {} rows cannot be recorded and run kernel by kernel: {}"
            level = "WARNING" if self.failed == 1 else "DEBUG"
            logger.log(level, said, len(step.tokens), str(error).partition("\n")[0])
            return None
        size.recording = recording = Recording(still, results[-1], graph)
        size.used = self.replays + 1
        self.recorded += 1
        self._make_room(MOST_RECORDED)
        return recording

    def _make_room(self, most: int) -> None:
        """Let go of the least recently used ones until at most `most` are left, and not too large."""
        kept = self._recorded()
        held = sum(recording.nbytes for recording in self.kept)
        while kept and (len(kept) > most or held > MOST_BYTES):
            oldest = kept.pop(0)
            assert oldest.recording is not None
            held -= oldest.recording.nbytes
            oldest.recording, oldest.seen, oldest.wait = None, 0, 2 * oldest.wait
            if not self._logged:
                said = "{} sizes of steps are recorded: the least recently used one makes room for each "
                logger.info(said + "further one", len(kept) + 1)
            self._logged = True

    def _recorded(self) -> list[StepSize]:
        every = (size for sizes in self._sizes.values() for size in sizes.values())
        return sorted((x for x in every if x.recording is not None), key=lambda x: x.used)


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
    ends = (runs.query_ends[-1] + np.cumsum(shares, dtype=np.int64)).tolist()
    query_ends, seq_lens = [*runs.query_ends, *ends], [*runs.seq_lens, *shares]
    return BlockTables(query_ends, seq_lens, tables, runs.window)


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
