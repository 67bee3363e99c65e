"""What a step takes: a measured curve, corrected by the steps that run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_ROWS = 1024  # beyond, a step takes as much more as its rows
NEWEST = 0.2  # weight of the newest step
WIDEST = 2.0  # a step that took so many times what it did lately counts as no more than that
FRESH = 128  # steps for which what was seen of a number of rows holds
RENEW = 8  # steps between new estimates


class Pace:
    """Seconds of a step by its rows, for one number of routed groups.

    Args:
        rows: row counts that were measured, ascending from 1.
        seconds: of a step with so many rows.

    Raises:
        ValueError: no measurement, or counts that do not ascend from 1.
    """

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]) -> None:
        if not rows or rows[0] != 1 or any(a >= b for a, b in itertools.pairwise(rows)):
            raise ValueError(f"rows={list(rows)} must ascend from 1")
        if len(rows) != len(seconds) or min(seconds) <= 0:
            raise ValueError(f"{len(seconds)} positive seconds are needed for {len(rows)} rows")
        self._rows = np.array(rows)
        # fewer rows never take longer: what took longer than more rows was held up
        curve = np.array(seconds, dtype=np.float64)
        self._curve = np.minimum.accumulate(curve[::-1])[::-1]
        self._ratios = np.ones(len(rows))  # what steps took lately, over the curve
        self._seen = np.full(len(rows), -FRESH - 1)  # when such a step last ran
        self._steps = 0
        self._table: list[float] = []
        self._renew()

    def seconds(self, rows: int) -> float:
        """Of a step with so many rows."""
        if rows <= MOST_ROWS:
            return self._table[rows]
        return self._table[MOST_ROWS] * rows / MOST_ROWS

    def note(self, rows: int, seconds: float) -> None:
        """A step took so long, drafting not counted."""
        if not 1 <= rows <= self._rows[-1]:
            return
        place = int(np.argmin(np.abs(self._rows - rows)))
        # relative to the curve at these very rows, which lie between those that were measured
        ratio = seconds / float(np.interp(rows, self._rows, self._curve))
        before = float(self._ratios[place])
        if self._steps - self._seen[place] > FRESH:
            before = float(self._now()[place])
        ratio = min(max(ratio, before / WIDEST), before * WIDEST)
        self._ratios[place] = before + NEWEST * (ratio - before)
        self._seen[place] = self._steps
        self._steps += 1
        if self._steps % RENEW == 0:
            self._renew()

    def _now(self) -> Floats:
        """Each measured count's ratio; those not seen lately go by the nearest that was."""
        fresh = np.flatnonzero(self._steps - self._seen <= FRESH)
        if not len(fresh):
            return self._ratios
        places = np.arange(len(self._rows))
        nearest = fresh[np.abs(places[:, None] - fresh).argmin(1)]
        ratios: Floats = self._ratios[nearest]
        return ratios

    def _renew(self) -> None:
        at = np.arange(MOST_ROWS + 1)
        curve = np.maximum.accumulate(self._curve * self._now())
        known = np.interp(at, self._rows, curve)
        last, most = int(self._rows[-1]), curve[-1]
        self._table = np.where(at > last, most * at / last, known).tolist()
