"""Limits of a step's rows, so that it ends in time for requests with a latency target."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from fastslow.engine.core.request import Request
from fastslow.engine.types import StepCostModel, StepTiming

SHARE = 0.75  # of the tightest target that a step may take: its time is only an estimate
WIDEST = 1024  # most rows that are considered
LATER = 10.0  # seconds for which steps stay short after the last request with a target
PATIENCE = 4  # steps that a request may be skipped; then it runs, however long that takes
LEAST = 16  # rows of its prompt that are read then


class LatencyBudget:
    """The rows that still fit into the step that is being scheduled.

    Without a target everything fits. After a request with a target steps stay short for a while: the
    next one may come in the middle of a step.
    """

    def __init__(
        self, cost_model: StepCostModel, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._cost_model = cost_model
        self._timer = timer
        self._last: tuple[float, float] | None = None  # the latest target, and when it was seen
        self._seconds: float | None = None
        self._rows = 0
        self._groups: int | None = 0
        self._shares = set[str | None]()  # of requests with a target
        self._forced = set[bool]()  # does more run than fits, of shares with a target, of others?

    @property
    def limited(self) -> bool:
        """True where the step has a limit."""
        return self._seconds is not None

    def begin(self, requests: Iterable[Request]) -> None:
        """Begin a step; `requests`: all that run or wait."""
        self._rows, self._groups, self._seconds, self._forced = 0, 0, None, set()
        tightest, now = math.inf, self._timer()
        shares: set[str | None] = set()
        for request in requests:
            if target := request.scheduling.latency_target:
                tightest = min(tightest, target)
                shares.add(request.share)
        if shares:
            self._last, self._shares = (tightest, now), shares
        if self._last is not None and now - self._last[1] < LATER:
            self._seconds = SHARE * self._last[0]

    def take(self, request: Request, rows: int) -> None:
        """A request runs these rows in this step."""
        self._groups = more(self._groups, request.current_groups)
        self._rows += rows

    def rows(self, request: Request) -> int:
        """Return how many of a request's rows still fit, perhaps none."""
        return WIDEST if self._seconds is None else max(0, self._most(request) - self._rows)

    def _most(self, request: Request) -> int:
        """Rows of a step with this request that is short enough."""
        groups, seconds = more(self._groups, request.current_groups), self._cost_model.seconds
        most = self._seconds or 0.0
        return bisect_right(range(1, WIDEST + 1), most, key=lambda n: seconds(groups, n))

    def share(self, request: Request, rows: int) -> int:
        """Return how many of `rows` rows a request runs; 0: it is skipped.

        All where there is no limit, and for a request with a target: its first token needs its own
        prompt anyway. Else what fits. Answers of shares that ask for no target run, too, and their prompts have
        LEAST rows at least, or all where no step keeps the target, as far as `StepBudget` allows.
        """
        if not self.limited or request.scheduling.latency_target is not None:
            return rows
        fits, own = min(rows, self.rows(request)), request.share in self._shares
        if not own and not self._most(request):
            return rows
        if own and (own in self._forced or request.scheduling.skipped_steps < PATIENCE):
            return fits
        least = 1 if own in self._forced else LEAST
        self._forced.add(own)
        return max(fits, min(rows, least))

    def nodes(self, request: Request, nodes: int, among: int) -> int:
        """Return how many of a draft's nodes fit, where `among` requests share what is left. The draft of a
        request with a target is cut only where its mode allows that."""
        if self._seconds is None or nodes == 0:
            return nodes
        if request.scheduling.latency_target is not None and not request.scheduling.may_cut_draft:
            return nodes
        nodes = min(nodes, self.rows(request) // max(among, 1))
        drafter, key = request.drafting.speculation, request.memory_key
        node_seconds = self._cost_model.draft_seconds(drafter, key, among)
        if node_seconds:
            spare = self._seconds - self._cost_model.seconds(self._groups, max(self._rows, 1))
            nodes = min(nodes, max(0, int(spare / node_seconds)))
        return nodes


class RunEverything:
    """The cost model that knows no costs: all nodes run, and all rows fit into any time."""

    def nodes_that_pay(
        self, batch: object, survival: object, sizes: Sequence[int], rows: int
    ) -> list[list[int]]:
        return [list(range(size)) for size in sizes]

    def note(self, batch: object, step: StepTiming) -> None:
        """Nothing to learn."""

    def seconds(self, groups: int | None, rows: int) -> float:
        return 0.0

    def draft_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        return None


def more(a: int | None, b: int | None) -> int | None:
    """The larger number of groups; None = all."""
    return None if a is None or b is None else max(a, b)
