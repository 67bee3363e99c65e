"""Running states as the kernels take them: where they lie, and what a step does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.backends.cpu.library import INT64, UINT64, address
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.rows import RunningRows
from fastslow.engine.types import Ints

PARTS = 2, 4  # of a layer's state, and of what a row adds to it; see kernels/running.h


@dataclass(slots=True)
class RunningArgs:
    """What `StepArgs` has of running states. The arrays are alive for as long as this is."""

    places: int
    spots: int
    arrays: dict[str, Ints]
    states: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        states: RunningStates,
        layers: tuple[int, ...],
        rows: Sequence[RunningRows],
        parents: Ints,
    ) -> RunningArgs:
        """For the rows of each request, in layers by number."""
        each, before, passed = list[tuple[int, ...]](), list[Ints](), list[tuple[int, int]]()
        count = 0
        for r in rows:
            each.append(
                (r.place, r.folds, r.stable, count, len(r.before), len(passed), len(r.snapshots))
            )
            before.append(r.before)
            passed += r.snapshots
            count += len(r.before)
        arrays = {
            "running": np.array(each, dtype=np.int64).reshape(-1),
            "parents": np.ascontiguousarray(parents),
            "before": np.concatenate(before),
            "ring_rows": np.concatenate([r.at for r in rows]),
            "passed": np.array(passed, dtype=np.int64).reshape(-1),
        }
        memory = states.addresses(layers, *PARTS)
        return cls(states.places, states.places + states.snapshots, arrays, memory)

    def fields(self) -> dict[str, int]:
        """Those of `StepArgs`, by name."""
        found = {
            name: address(name, array, INT64, array.size) for name, array in self.arrays.items()
        }
        return found | {
            "places": self.places,
            "spots": self.spots,
            "before_size": len(self.arrays["before"]),
            "passed_size": len(self.arrays["passed"]) // 2,
            "states": address("running states", self.states, UINT64, self.states.size),
        }


def cut(running: RunningRows, first: int, stop: int) -> RunningRows:
    """The work of rows first .. stop - 1 of a segment, where rows that are not final are cut off from none."""
    folded = first + (running.folds if first else 0)
    return RunningRows(
        running.place,
        running.before if not first else running.before[:0],
        0 if first else running.folds,
        min(max(running.stable - first, 0), stop - first),
        running.at[first:stop],
        tuple(
            (n - folded, to)
            for n, to in running.snapshots
            if folded < n <= running.folds + min(running.stable, stop)
        ),
    )
