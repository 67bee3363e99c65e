"""Running states as the kernels take them: where they lie, and what a step does with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastslow.engine.backends.cpu.library import INT64, UINT64, address
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints

PARTS = 2, 4  # of a layer's state, and of what a row adds to it; see kernels/running.h


def running_args(
    states: RunningStates, layers: tuple[int, ...], rows: Sequence[RunningRows], parents: Ints
) -> tuple[dict[str, int], dict[str, Ints]]:
    """Fields of `StepArgs`, by name, for the rows of each request in layers by number; and the arrays at some of these
    addresses."""
    each, before, passed = list[tuple[int, ...]](), list[int](), list[tuple[int, int]]()
    for r in rows:
        parts = len(before), len(r.before), len(passed), len(r.snapshots)
        each.append((r.place, r.folds, r.stable, *parts))
        before += r.before.tolist()
        passed += r.snapshots
    lists = {"running": each, "before": before, "passed": passed}
    arrays = {name: np.array(some, dtype=np.int64).reshape(-1) for name, some in lists.items()}
    arrays |= {
        "parents": np.ascontiguousarray(parents),
        "ring_rows": np.concatenate([r.at for r in rows]),
    }
    memory = states.addresses(layers, *PARTS)
    fields = {name: address(name, array, INT64, array.size) for name, array in arrays.items()}
    fields |= {"places": states.places, "spots": states.places + states.snapshots}
    fields |= {"before_size": len(before), "passed_size": len(passed)}
    return fields | {"states": address("running states", memory, UINT64, memory.size)}, arrays


def cut(running: RunningRows, first: int, stop: int) -> RunningRows:
    """The work of rows first .. stop - 1 of a segment, where rows that are not final are cut off from none."""
    gone = running.folds + first if first else 0  # rows folded in before
    before = running.before[:0] if first else running.before
    stable = min(max(running.stable - first, 0), stop - first)
    folds = min(running.folds, len(before))
    passed = tuple((n - gone, to) for n, to in running.snapshots if 0 < n - gone <= folds + stable)
    return RunningRows(running.place, before, folds, stable, running.at[first:stop], passed)
