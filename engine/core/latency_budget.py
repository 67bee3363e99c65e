"""How long a step may take while requests with a latency target are about, and so how many rows it
may have."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from fastslow.engine.core.request import Request
from fastslow.engine.types import StepCostModel, Stepped

SHARE = 0.75  # of the tightest target: a step's time is known beforehand only so well
WIDEST = 1024  # rows that are looked at
LATER = 10.0  # seconds for which steps stay short behind the last request with a target
PATIENCE = 4  # steps that a request may be passed over; then its turn comes, whatever that takes
LEAST = 16  # rows of a prompt that are read in such a turn


class LatencyBudget:
    """The rows that still fit into the step that is being put together.

    Without a target anywhere everything fits. After a request with a target
    steps stay short for a while: the next one may come in the middle of a step.

    Args:
        meter: knows what steps take.
        clock: in seconds.
    """

    def __init__(self, meter: StepCostModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock
        self._last: tuple[float, float] | None = None  # the latest target, and when it was seen
        self._seconds: float | None = None
        self._rows = 0
        self._groups: int | None = 0
        self._forced = False  # somebody's turn came in this step

    @property
    def limited(self) -> bool:
        """Whether the step has a limit."""
        return self._seconds is not None

    def begin(self, requests: Iterable[Request]) -> None:
        """A new step; `requests`: all that run or wait."""
        self._rows, self._groups, self._seconds, self._forced = 0, 0, None, False
        targets = [r.target for r in requests if r.target is not None]
        now = self._clock()
        if targets:
            self._last = min(targets), now
        if self._last is not None and now - self._last[1] < LATER:
            self._seconds = SHARE * self._last[0]

    def take(self, request: Request, rows: int) -> None:
        """So many rows of a request are in."""
        self._groups = _more(self._groups, request.here)
        self._rows += rows

    def rows(self, request: Request) -> int:
        """How many of a request's rows still fit; it may be none."""
        if self._seconds is None:
            return WIDEST
        groups, meter, limit = _more(self._groups, request.here), self._meter, self._seconds
        most = bisect_right(range(1, WIDEST + 1), limit, key=lambda n: meter.seconds(groups, n))
        return max(0, most - self._rows)

    def share(self, request: Request, rows: int) -> int:
        """How many of `rows` a request brings; 0: it is passed over.

        All where nothing is limited, and of a request that has a target: what it must wait for its
        first token is its own prompt. Else what fits.
        """
        if not self.limited or request.target is not None:
            return rows
        fits = min(rows, self.rows(request))
        if request.passed >= PATIENCE and not self._forced:
            self._forced = True
            return max(fits, min(rows, LEAST))
        return fits

    def nodes(self, request: Request, nodes: int, among: int) -> int:
        """How much of a draft's budget fits, where `among` requests share what is left. The draft of
        a request with a target is cut only where its mode allows that."""
        if self._seconds is None or nodes == 0:
            return nodes
        if request.target is not None and not request.may_cut_draft:
            return nodes
        nodes = min(nodes, self.rows(request) // max(among, 1))
        each = self._meter.draft_seconds(request.speculation)
        if each:
            spare = self._seconds - self._meter.seconds(self._groups, max(self._rows, 1))
            nodes = min(nodes, max(0, int(spare / each)))
        return nodes


class RunEverything:
    """A meter that knows nothing of seconds: all nodes run, and all rows fit into any time."""

    def admit(
        self, batch: object, survival: object, sizes: Sequence[int], rows: int
    ) -> list[list[int]]:
        return [list(range(size)) for size in sizes]

    def note(self, batch: object, step: Stepped) -> None:
        """Nothing to learn."""

    def seconds(self, groups: int | None, rows: int) -> float:
        return 0.0

    def draft_seconds(self, drafter: object) -> float | None:
        return None


def _more(a: int | None, b: int | None) -> int | None:
    """The larger number of groups; None = all."""
    return None if a is None or b is None else max(a, b)
