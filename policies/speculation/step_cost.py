"""How long steps and drafts take on this machine: measured once, corrected while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.types import MarginalValue
from fastslow.policies.speculation.backoff import RunningMean
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class StepCostCurve:
    """Seconds of a step by its rows, for one number of routed groups, from what was measured: row counts,
    ascending from 1, and the seconds of each."""

    def __init__(
        self, rows: Sequence[int], seconds: Sequence[float], tuning: SpeculationTuning = TUNING
    ) -> None:
        self._tuning = tuning
        self._rows = np.array(rows)
        # fewer rows never take longer than more rows: such a measurement was disturbed
        curve = np.array(seconds, dtype=np.float64)
        self._curve = np.minimum.accumulate(curve[::-1])[::-1]
        self._speed = RunningMean(
            1.0, 1 / tuning.step_rate
        )  # what steps take lately, over the curve
        self._shape = np.ones(len(rows))  # the same of each row count, over the speed
        self._seen = np.zeros(len(rows))  # steps of each
        self._steps = 0
        self._table: list[float] = []
        self._renew()

    def seconds(self, rows: int) -> float:
        most = self._tuning.table_rows
        if rows <= most:
            return self._table[rows]
        return self._table[most] * rows / most

    def row_price(self, running: int, nodes: int) -> float:
        """Cost of a row, in tokens of one request, where `running` requests draft `nodes` nodes each."""
        more = nodes * running
        step = self.seconds(running)
        return (self.seconds(running + more) - step) / more / (step / running)

    def note(self, rows: int, seconds: float) -> None:
        """A step took this long, drafting not counted."""
        if not 1 <= rows <= self._rows[-1]:
            return
        tuning = self._tuning
        place = int(np.argmin(np.abs(self._rows - rows)))
        # relative to the curve at these very rows, which lie between those that were measured
        ratio = seconds / float(np.interp(rows, self._rows, self._curve))
        shape = float(self._shapes()[place])
        before = self._speed.value * shape
        ratio = min(max(ratio, before / tuning.step_limit), before * tuning.step_limit)
        self._seen[place] = seen = min(self._seen[place] + 1, tuning.shape_memory)
        if seen > 1:  # the first time says what such a step takes, not how fast the machine is
            self._speed.add(ratio / shape)
        self._shape[place] = shape + (ratio / self._speed.value - shape) / seen
        self._steps += 1
        if self._steps % tuning.table_every == 0 or seen == 1:
            self._renew()

    def _shapes(self) -> NDArray[np.float64]:
        """The shape at every measured row count; that of the nearest where no such step ran."""
        known = np.flatnonzero(self._seen)
        if not len(known):
            return self._shape
        places = np.arange(len(self._rows))
        shapes: NDArray[np.float64] = self._shape[known[np.abs(places[:, None] - known).argmin(1)]]
        return shapes

    def _renew(self) -> None:
        at = np.arange(self._tuning.table_rows + 1)
        curve = np.maximum.accumulate(self._curve * self._speed.value * self._shapes())
        known = np.interp(at, self._rows, curve)
        last, most = int(self._rows[-1]), curve[-1]
        self._table = np.where(at > last, most * at / last, known).tolist()


class StepCosts:
    """The curves of all modes, and what each drafter takes. measure: gives the curve of steps with a number of routed
    groups (None = all); asked once for each number."""

    def __init__(
        self, measure: Callable[[int | None], StepCostCurve], tuning: SpeculationTuning = TUNING
    ) -> None:
        self._measure = measure
        self._tuning = tuning
        self._curves: dict[int | None, StepCostCurve] = {}
        self._node: dict[object, RunningMean] = {}
        self._question: dict[object, RunningMean] = {}

    def curve(self, groups: int | None) -> StepCostCurve:
        """The curve of steps whose rows run `groups` groups."""
        if groups not in self._curves:
            self._curves[groups] = self._measure(groups)
        return self._curves[groups]

    def note(self, groups: int | None, rows: int, seconds: float) -> None:
        """A step took this long, drafting not counted."""
        if groups in self._curves:
            self._curves[groups].note(rows, seconds)

    def value(self, groups: int | None, running: int) -> MarginalValue:
        """What one more token gains and one more row costs in a step of `running` requests."""
        curve = self.curve(groups)
        token = curve.seconds(running) / running
        return MarginalValue(token, token * curve.row_price(running, self._tuning.priced_nodes))

    def node_seconds(self, drafter: object) -> float | None:
        """What one more node of depth takes to draft; None: not measured yet."""
        known = self._node.get(drafter)
        return None if known is None else known.value

    def ask_seconds(self, drafter: object) -> float:
        """What asking a drafter takes by request, even if it proposes nothing."""
        known = self._question.get(drafter)
        return 0.0 if known is None else known.value

    def drafted(self, drafter: object, seconds: float, asked: int, depth: int) -> None:
        """A drafter took `seconds` for `asked` requests and trees of at most this depth."""
        for means, parts in ((self._node, depth), (self._question, asked)):
            if parts > 0:
                mean = means.get(drafter)
                if mean is None:
                    mean = means[drafter] = RunningMean(0.0, self._tuning.draft_memory)
                mean.add_time(seconds / parts, self._tuning.held_up)

    def forget(self, drafter: object) -> None:
        for means in (self._node, self._question):
            means.pop(drafter, None)
