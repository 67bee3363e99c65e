"""One trace through several routers and numbers of replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fastslow.tools.simulate.cluster import (
    ClusterResult,
    SimulatedCluster,
    check_trace,
)
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.figures import ClusterFigures, figures, possible_hit_rate
from fastslow.tools.simulate.load import at_rate
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import TracedRequest


class Sweep:
    """Simulations that differ in router and replicas.

    Args:
        trace: by arrival.
        costs: of each replica.
        settings: of all else.
        rate_each: requests a second and replica; None = as in the trace.
        seconds: of arrivals then, see `at_rate`.

    Raises:
        ValueError: see `check_trace`.
    """

    def __init__(
        self,
        trace: Sequence[TracedRequest],
        costs: ReplicaCosts,
        settings: ClusterSettings,
        rate_each: float | None = None,
        seconds: float = 300.0,
    ) -> None:
        check_trace(trace, costs)
        self._trace, self._costs, self._settings = trace, costs, settings
        self._rate_each, self._seconds = rate_each, seconds

    def run(
        self, routers: Sequence[str], counts: Sequence[int], told: Callable[[float, str], None]
    ) -> Iterator[tuple[ClusterResult, ClusterFigures]]:
        """Each router with each number of replicas.

        told: hears the share that is done, and what goes on.
        """
        for router in routers:
            for count in counts:  # what does not fit is known now
                replace(self._settings, router=router, replicas=count)
        for place, count in enumerate(counts):
            trace = self._load(count)
            possible = possible_hit_rate(trace, self._costs.page_tokens)
            for turn, name in enumerate(routers):
                settings = replace(self._settings, router=name, replicas=count)
                done = (place * len(routers) + turn, len(routers) * len(counts))
                words = f"{name}, {count} replicas, {len(trace):,} requests"

                def share(part: float, done: tuple[int, int] = done, words: str = words) -> None:
                    told((done[0] + part) / done[1], words)

                result = SimulatedCluster(trace, self._costs, settings, share).run()
                yield result, figures(name, count, result, possible)

    def _load(self, replicas: int) -> Sequence[TracedRequest]:
        """The requests for so many replicas."""
        if self._rate_each is None:
            return self._trace
        rate = self._rate_each * replicas
        return at_rate(self._trace, rate, self._seconds, self._settings.seed)
