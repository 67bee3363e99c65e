"""How many answers may wait and run at a time, and when it is worth to try again."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

RECENT = 64  # requests that are over, by which the speed is judged
SOONEST, LATEST = 0.1, 60.0  # seconds of `Busy.retry_after`
UNKNOWN = 1.0  # the same where nothing is over yet


class Busy(RuntimeError):
    """The queue is full. Nothing was done for the call. After `retry_after` seconds it is worth to try again,
    by how quickly requests end."""

    def __init__(self, message: str, retry_after: float = UNKNOWN) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Busy], tuple[str, float]]:
        return Busy, (str(self), self.retry_after)


class Admission:
    """Counts the answers that wait or run; any thread may call it. `running` and `waiting`: at most so many."""

    def __init__(
        self, running: int, waiting: int, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = running + waiting
        self._timer = timer
        self._lock = threading.Lock()
        self._ends: deque[tuple[float, int]] = deque(maxlen=RECENT)  # when, and how many answers
        self.answers = 0

    def enter(self, answers: int) -> None:
        """Let a request in; `leave` has to follow.

        Raises:
            Busy: they do not fit now.
            ValueError: they never will.
        """
        with self._lock:
            if answers > self._most:
                raise ValueError(
                    f"n={answers} is more than the {self._most} answers that may wait and run"
                )
            missing = self.answers + answers - self._most
            if missing > 0:
                after = self._seconds(missing)
                raise Busy(
                    f"{self.answers} answers are being made or wait, and at most {self._most} may: try "
                    f"again in {after:.1f} seconds",
                    after,
                )
            self.answers += answers

    def leave(self, answers: int) -> None:
        with self._lock:
            self.answers -= answers
            self._ends.append((self._timer(), answers))

    def _seconds(self, answers: int) -> float:
        """In how many seconds this many answers will be over, at the speed of late."""
        if not self._ends:
            return UNKNOWN
        spent = self._timer() - self._ends[0][0]
        ended = sum(count for _, count in self._ends)
        return min(LATEST, max(SOONEST, answers * spent / ended))
