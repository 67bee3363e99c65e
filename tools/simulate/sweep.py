"""One trace through several routers and numbers of replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fastslow.tools.simulate.cluster import (
    ClusterResult,
    ClusterSettings,
    SimulatedCluster,
    at_rate,
    check_trace,
)
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.figures import ClusterFigures, figures, possible_hit_rate
from fastslow.tools.simulate.trace import TracedRequest


class Sweep:
    """Simulations that differ in router and replicas.

    Args:
        trace: by arrival.
        costs: of each replica.
        settings: of all else.
        rate_each: requests a second and replica; None = as in the trace.

    Raises:
        ValueError: see `check_trace`.
    """

    def __init__(
        self,
        trace: Sequence[TracedRequest],
        costs: ReplicaCosts,
        settings: ClusterSettings,
        rate_each: float | None = None,
    ) -> None:
        check_trace(trace, costs)
        self._trace, self._costs, self._settings = trace, costs, settings
        self._rate_each = rate_each
        self._possible = possible_hit_rate(trace, costs.page_tokens)

    def run(
        self, routers: Sequence[str], counts: Sequence[int], told: Callable[[float, str], None]
    ) -> Iterator[tuple[ClusterResult, ClusterFigures]]:
        """Each router with each number of replicas.

        told: hears the share that is done, and what goes on.
        """
        cells = [(router, count) for count in counts for router in routers]
        every = [
            replace(self._settings, router=router, replicas=count) for router, count in cells
        ]  # what does not fit is known now
        for place, settings in enumerate(every):
            trace = self._trace
            if self._rate_each is not None:
                trace = at_rate(trace, self._rate_each * settings.replicas)
            words = f"{settings.router}, {settings.replicas} replicas"

            def share(done: float, place: int = place, words: str = words) -> None:
                told((place + done) / len(every), words)

            result = SimulatedCluster(trace, self._costs, settings, share).run()
            yield result, figures(settings.router, settings.replicas, result, self._possible)
