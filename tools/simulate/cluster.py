"""Many simulated replicas and one router: events in the order of their time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.costs import MOST_OTHERS, ReplicaCosts
from fastslow.tools.simulate.replica import SimulatedReplica
from fastslow.tools.simulate.routers import ComparedRouter, PowerOfTwo, check_router, prompt_text
from fastslow.tools.simulate.trace import TracedRequest

BEGIN = 1.0e9  # of the simulated clock, in seconds since 1970: routers take times near 0 for none
REPORT_SECONDS = 1.0  # between two reports of a replica
MOST_REPORTS = 1e8  # each is an event: more take hours
MOST_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What is simulated besides the trace and the costs.

    Attributes:
        replicas: how many there are.
        router: "fastslow" or "pow2".
        machine_replicas: that share a machine and slow each other's steps, as the costs say.
        routing: settings of the server's router.
        seed: of all chance.
    """

    replicas: int
    router: str = "fastslow"
    machine_replicas: int = 1
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("replicas", MOST_REPLICAS), ("machine_replicas", MOST_OTHERS)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and {most}")
        check_router(self.router)


@dataclass(slots=True)
class ClusterResult:
    """What came of a simulation.

    Attributes:
        answers: every request of the trace with its times, in the order of their ends.
        replica_seconds: that replicas were there for; after the last arrival only their steps count, since a
            cluster in use would have further requests.
        busy_seconds: of these, in steps.
        preempted: requests that lost their pages for a while.
    """

    answers: list[AnswerState] = field(default_factory=list)
    replica_seconds: float = 0.0
    busy_seconds: float = 0.0
    preempted: int = 0


class SimulatedCluster:
    """A trace through a router to replicas.

    Args:
        trace: by arrival, each with an id that no other has.
        costs: of every replica.
        settings: see there.

    Raises:
        ValueError: a request has a mode without costs, or does not fit into a replica's pages; or the
            simulation would hardly end.
    """

    def __init__(
        self, trace: Sequence[TracedRequest], costs: ReplicaCosts, settings: ClusterSettings
    ) -> None:
        _check(trace, costs, settings)
        self.settings = settings
        self._trace, self._costs = trace, costs
        self._now = trace[0].arrival
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._replicas = {f"replica-{n}": self._replica(n) for n in range(settings.replicas)}
        routing = replace(settings.routing, seed=settings.seed)
        self._router: ComparedRouter = ReplicaChooser(routing, self._clock)
        if settings.router == "pow2":
            self._router = PowerOfTwo(self._length, Random(settings.seed))
        self._router.set_replicas(self._replicas)
        self._result = ClusterResult()

    def run(self) -> ClusterResult:
        """Simulate until every request is over."""
        result, random = self._result, Random(self.settings.seed)
        for id in self._replicas:
            self._at(self._now + random.random() * REPORT_SECONDS, partial(self._report, id))
        for answer in self._states():
            self._pass_until(answer.request.arrival)
            self._send(answer)
        seconds = self._now - self._trace[0].arrival
        busy = [replica.busy_until(self._now) for replica in self._replicas.values()]
        while len(result.answers) < len(self._trace):
            self._next()
        replicas = self._replicas.values()
        result.busy_seconds = sum(replica.busy_until(self._now) for replica in replicas)
        result.replica_seconds = seconds * len(replicas) + result.busy_seconds - sum(busy)
        result.preempted = sum(replica.preempted for replica in replicas)
        return result

    def _replica(self, number: int) -> SimulatedReplica:
        size = self.settings.machine_replicas
        first = number // size * size  # on its machine
        beside = [f"replica-{n}" for n in range(first, first + size) if n != number]

        def others() -> int:
            return sum(self._replicas[id].runs for id in beside if id in self._replicas)

        return SimulatedReplica(self._costs, others)

    def _pass_until(self, time: float) -> None:
        """All that happens before a time."""
        while self._events[0][0] < time:
            self._next()
        self._now = time

    def _next(self) -> None:
        self._now, _, event = heapq.heappop(self._events)
        event()

    def _states(self) -> list[AnswerState]:
        found = []
        for age, request in enumerate(self._trace):
            cost = self._costs.mode(request.mode)
            rate = request.tokens_per_step or cost.tokens_per_step
            found.append(
                AnswerState(request, age, rate, request.rows_per_step or cost.rows_per_step)
            )
        return found

    def _clock(self) -> float:
        return BEGIN + self._now

    def _length(self, id: str) -> int:
        return self._replicas[id].answers

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _send(self, answer: AnswerState) -> None:
        """To the replica that the router ranks first."""
        request = answer.request
        asked = RoutedRequest(
            id=request.id,
            mode=request.mode,
            deep=request.deep,
            prompt=prompt_text(request),
            prompt_tokens=request.prompt_tokens,
            latency_ms=request.latency_ms,
            memory_key=request.memory_key,
        )
        id = self._router.rank(asked)[0]
        self._router.routed(asked, id)
        if self._costs.first_seconds:
            self._at(self._now + self._costs.first_seconds, partial(self._arrive, answer, id))
        else:
            self._arrive(answer, id)

    def _arrive(self, answer: AnswerState, id: str) -> None:
        replica = self._replicas[id]
        ran = replica.runs
        replica.add(answer, self._now)
        if not ran:
            self._at(replica.wakes, partial(self._wake, replica))

    def _wake(self, replica: SimulatedReplica) -> None:
        """A step of a replica has ended."""
        over = replica.wake(self._now)
        for answer in over:
            self._router.ended(answer.request.id)
        self._result.answers += over
        if replica.runs:
            self._at(replica.wakes, partial(self._wake, replica))

    def _report(self, id: str) -> None:
        self._router.report(id, self._replicas[id].report(self._now, self._clock()))
        self._at(self._now + REPORT_SECONDS, partial(self._report, id))


def _check(trace: Sequence[TracedRequest], costs: ReplicaCosts, settings: ClusterSettings) -> None:
    """ValueError: a request cannot be answered, or the simulation would hardly end."""
    if not trace:
        raise ValueError("the trace has no request")
    for one in trace:
        costs.mode(one.mode)
        pages = (one.prompt_tokens + one.answer_tokens) // costs.page_tokens + 2
        if pages > costs.pages:
            raise ValueError(
                f"request {one.id!r} needs {pages} pages of {costs.page_tokens} tokens, and a replica has {costs.pages}"
            )
    if settings.machine_replicas > 1 and not costs.slowdown:
        raise ValueError(
            f"machine_replicas={settings.machine_replicas} needs costs with a slowdown: "
            "`fastslow simulate measure --beside N` measures it"
        )
    steps = max(one.answer_tokens + one.prompt_tokens / costs.prompt_rows for one in trace)
    longest = steps * max(cost.seconds[0] for cost in costs.modes.values())
    span = trace[-1].arrival - trace[0].arrival + longest
    if span / REPORT_SECONDS * settings.replicas > MOST_REPORTS:
        raise ValueError(
            f"{settings.replicas} replicas for the {span:.3g} s of this trace are too much work: "
            "take a shorter trace, or fewer replicas"
        )
