"""Seconds that steps and drafts take on this machine: measured once, corrected while they run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.types import DraftCall, MarginalValue
from fastslow.policies.speculation.backoff import MIXED, ByKey, RunningMean, common_key
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


class StepCostCurve:
    """Seconds of a step by its rows, for one number of routed groups, from what was measured: row counts,
    ascending from 1, and the seconds of each."""

    def __init__(
        self, rows: Sequence[int], seconds: Sequence[float], tuning: SpeculationTuning = TUNING
    ) -> None:
        self._tuning = tuning
        # fewer rows never take longer than more rows: such a measurement was disturbed
        curve = np.array(seconds, dtype=np.float64)
        self._rows, self._curve = np.array(rows), np.minimum.accumulate(curve[::-1])[::-1]
        # of every row count: the nearest that was measured, and the curve at these very rows
        at = np.arange(rows[-1] + 1)
        self._nearest: list[int] = np.abs(self._rows - at[:, None]).argmin(1).tolist()
        self._between: list[float] = np.interp(at, self._rows, self._curve).tolist()
        # what steps take lately, over the curve; and those of each row count, over this speed
        self._speed = 1.0
        self._shape = [1.0] * len(rows)
        self._seen = [0.0] * len(rows)  # steps of each
        self._lately = set[int]()  # places of steps since the latest table
        self._plain = 0  # place of the latest step without drafts
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

    def note(self, rows: int, seconds: float, plain: bool = True) -> None:
        """A step took this long, drafting not counted. plain: without drafts, so that it says how fast the machine is;
        of one with drafts, some is what drafts take besides."""
        if not 1 <= rows < len(self._nearest):
            return
        tuning, place = self._tuning, self._nearest[rows]
        ratio = seconds / self._between[rows]
        shape = self._shape[self._alike[place]]
        before = self._speed * shape
        most = tuning.step_limit if plain else tuning.drafted_limit
        ratio = min(max(ratio, before / tuning.step_limit), before * most)
        self._seen[place] = seen = min(self._seen[place] + 1, tuning.shape_memory)
        if seen == 1:
            return  # the first step of a kind finds cold caches
        self._lately.add(place)
        self._plain = place if plain else self._plain
        if seen > tuning.shape_begun:
            rate = tuning.plain_rate if plain else tuning.drafted_rate
            self._speed += rate * (ratio / shape - self._speed)
        self._shape[place] = shape + (ratio / self._speed - shape) / (seen - 1)
        self._steps += 1
        if self._steps % tuning.table_every == 0 or seen == 2:
            self._renew()

    def _renew(self) -> None:
        # what was slow by chance may run no more and not be seen to be fast: it fades to what was measured
        plain, alone = self._shape[0], len(self._lately) < 2
        fading = self._tuning.shape_fading[alone]
        for place, shape in enumerate(self._shape):
            if place not in self._lately:
                self._shape[place] = plain + (shape - plain) * fading
        self._lately.clear()
        known = np.flatnonzero(np.array(self._seen) > 1)
        places = np.arange(len(self._rows))
        # of every measured row count, the nearest where such a step ran: its shape is taken
        near = known[np.abs(places[:, None] - known).argmin(1)] if len(known) else places
        self._alike: list[int] = near.tolist()
        at = np.arange(self._tuning.table_rows + 1)
        times = self._curve * self._speed * np.array(self._shape)[near]
        # few steps that were delayed make no others expensive, and few that were fast make plain ones no cheaper
        curve = np.minimum.accumulate(times[::-1])[::-1]
        curve[self._plain :] = np.maximum(curve[self._plain :], times[self._plain])
        last, most = int(self._rows[-1]), curve[-1]
        table = np.interp(at, self._rows, curve)
        self._table = np.where(at > last, most * at / last, table).tolist()


class StepCosts:
    """The curves of all modes, and what each drafter takes. measure: gives the curve of steps with a number of routed
    groups (None = all); asked once for each number. What a drafter takes is learnt by memory key."""

    def __init__(
        self, measure: Callable[[int | None], StepCostCurve], tuning: SpeculationTuning = TUNING
    ) -> None:
        self._measure = measure
        self._tuning = tuning
        self._curves: dict[int | None, StepCostCurve] = {}
        self._asking: dict[object, ByKey[defaultdict[str, RunningMean]]] = {}

    def curve(self, groups: int | None) -> StepCostCurve:
        """The curve of steps whose rows run `groups` groups."""
        if groups not in self._curves:
            self._curves[groups] = self._measure(groups)
        return self._curves[groups]

    def asked(self, groups: int | None) -> bool:
        """True where that curve was asked for, so that it is measured."""
        return groups in self._curves

    def note(self, groups: int | None, rows: int, seconds: float, plain: bool) -> None:
        """See `StepCostCurve.note`."""
        self._curves[groups].note(rows, seconds, plain)

    def value(self, groups: int | None, running: int) -> MarginalValue:
        """The gain of one more token and the cost of one more row in a step of `running` requests."""
        curve = self.curve(groups)
        token = curve.seconds(running) / running
        return MarginalValue(token, token * curve.row_price(running, self._tuning.priced_nodes))

    def node_seconds(self, drafter: object, key: str | None = None) -> float | None:
        """Seconds that one more node of depth takes to draft; None: not measured yet."""
        known = self._of(drafter, key, "node")
        return None if known is None else known.value

    def ask_seconds(self, drafter: object, key: str | None = None) -> float:
        """Seconds that asking a drafter takes by request, even if it proposes nothing; 0: not measured yet."""
        known = self._of(drafter, key, "call")
        return 0.0 if known is None else known.value

    def pass_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        """As `node_seconds`, also of a drafter that chooses among several, and for so many requests: as a step of so
        many rows is longer than one of those that were asked for lately."""
        known, usual = self._of(drafter, key, "pass"), self._of(drafter, key, "asked")
        if known is None or usual is None or not self._curves:
            return None
        curve = next(iter(self._curves.values()))
        return known.value * max(1.0, curve.seconds(asked) / curve.seconds(round(usual.value)))

    def drafted(self, call: DraftCall) -> None:
        """A drafter was asked."""
        drafter, seconds, asked, depth, keys, adaptive = call
        memory, held_up = self._tuning.draft_memory, self._tuning.held_up
        means = self._asking.setdefault(
            drafter, ByKey(lambda: defaultdict(lambda: RunningMean(0.0, memory)))
        )
        known = means.of(common_key(keys))
        if depth > 0 and asked > 0:
            known["asked"].add(asked)
            known["pass"].add_time(seconds / depth, held_up)
        if depth > 0 and not adaptive:
            known["node"].add_time(seconds / depth, held_up)
        if asked > 0 and not adaptive:
            each, usual = seconds / asked, known["call"]
            rested = not usual.count or each * held_up <= usual.value  # if it has nothing to say
            if depth > 0 or not rested:
                usual.add_time(each, held_up)

    def forget(self, drafter: object) -> None:
        self._asking.pop(drafter, None)

    def _of(self, drafter: object, key: str | None, what: str) -> RunningMean | None:
        """The mean of steps of this key alone; else of steps of several keys; None: neither is known."""
        means = self._asking.get(drafter)
        known = (means.of(one).get(what) for one in (key, MIXED)) if means else ()
        return next((mean for mean in known if mean is not None), None)
