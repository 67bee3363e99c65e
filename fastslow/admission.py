"""Limits on the answers that wait and run at a time, and the time after which to try again."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable

RECENT = 64  # requests that are over, by which the speed is judged
SOONEST, LATEST = 0.1, 60.0  # seconds of `Busy.retry_after`
UNKNOWN = 1.0  # the same where nothing is over yet
KEPT = 4  # one place in four is kept for callers with few


class Busy(RuntimeError):
    """The queue is full. Nothing was done for the call. After `retry_after` seconds it is worth to try again,
    by how quickly requests end."""

    def __init__(self, message: str, retry_after: float = UNKNOWN) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Busy], tuple[str, float]]:
        return Busy, (str(self), self.retry_after)


class FairPlaces:
    """Places that callers take. The last ones are for callers that have fewer than an equal part of all, so that one
    with many does not keep out the others. most: how many there are. kept: how many of them are the last ones."""

    def __init__(self, most: int, kept: int) -> None:
        self.most, self._kept = most, kept
        self.taken = 0
        self._by_share: Counter[str | None] = Counter()

    def open_to(self, share: str | None, count: int) -> int:
        """Return the number of places, taken ones included, that a share may use when it asks for `count` more; all
        of them where no share is named."""
        own = self._by_share[share]
        equal = self.most // (len(self._by_share) + 1)  # one more may come
        all_of_them = share is None or own == 0 or own + count <= equal
        return self.most if all_of_them else self.most - self._kept

    def take(self, share: str | None, count: int) -> None:
        """Take places, or give them back where the count is below 0."""
        self.taken += count
        self._by_share[share] += count
        if not self._by_share[share]:
            del self._by_share[share]


class Admission:
    """Counts the answers that wait or run; any thread may call it. `running`, `waiting`: the most of each.

    A quarter of the waiting places is kept for callers with few answers.
    """

    def __init__(
        self, running: int, waiting: int, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._places = FairPlaces(running + waiting, waiting // KEPT)
        self._timer = timer
        self._lock = threading.Lock()
        self._ends: deque[tuple[float, int]] = deque(maxlen=RECENT)  # when, and how many answers

    @property
    def answers(self) -> int:
        return self._places.taken

    def enter(self, answers: int, share: str | None = None) -> None:
        """Let a request in; `leave` has to follow. `share`: who asks. Busy: they do not fit now. ValueError: they
        never will."""
        with self._lock:
            places = self._places
            if answers > places.most:
                raise ValueError(
                    f"n={answers} is more than the {places.most} answers that may wait and run"
                )
            most = places.open_to(share, answers)
            missing = places.taken + answers - most
            if missing > 0:
                after = self._seconds(missing)
                others = "" if most == places.most else " (the rest is kept for callers with few)"
                raise Busy(
                    f"{places.taken} answers are being made or wait, and at most {most} may{others}: try "
                    f"again in {after:.1f} seconds",
                    after,
                )
            places.take(share, answers)

    def leave(self, answers: int, share: str | None = None) -> None:
        with self._lock:
            self._places.take(share, -answers)
            self._ends.append((self._timer(), answers))

    def _seconds(self, answers: int) -> float:
        """In how many seconds this many answers will be over, at the speed of late."""
        if not self._ends:
            return UNKNOWN
        spent = self._timer() - self._ends[0][0]
        ended = sum(count for _, count in self._ends)
        return min(LATEST, max(SOONEST, answers * spent / ended))
