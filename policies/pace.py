"""What a step takes: a measured curve, corrected by the steps that run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

MOST_ROWS = 1024  # beyond, a step takes as much more as its rows
FAST, SLOW = 0.2, 0.05  # how soon the machine's speed, and one number of rows, are believed
WIDEST = 4.0  # a step that took more than so many times its estimate says nothing of the others
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
        # what noise made faster than fewer rows is not
        self._curve = np.maximum.accumulate(np.array(seconds, dtype=np.float64))
        self._speed = 1.0  # of the machine now, as a factor of the curve
        self._bends = np.ones(len(rows))  # of single row counts
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
        if not 1 <= rows <= MOST_ROWS:
            return
        place = int(np.argmin(np.abs(self._rows - rows)))
        ratio = seconds / (self.seconds(rows) / self._speed)
        if not 1 / WIDEST < ratio / self._speed < WIDEST:
            return
        self._bends[place] *= (ratio / self._speed) ** SLOW
        self._speed *= (ratio / self._speed) ** FAST
        self._steps += 1
        if self._steps % RENEW == 0:
            self._renew()

    def _renew(self) -> None:
        at = np.arange(MOST_ROWS + 1)
        curve = np.maximum.accumulate(self._curve * self._bends) * self._speed
        known = np.interp(at, self._rows, curve)
        last, most = int(self._rows[-1]), curve[-1]
        self._table = np.where(at > last, most * at / last, known).tolist()
