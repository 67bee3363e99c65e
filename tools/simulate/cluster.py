"""Many simulated replicas and the server's router: events in the order of their time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from random import Random

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.replica import AnswerState, SimulatedReplica
from fastslow.tools.simulate.trace import TracedRequest

BEGIN = 1.0e9  # of the simulated clock, in seconds since 1970: routers take times near 0 for none
REPORT_SECONDS = 1.0  # between two reports of a replica
MOST_REPLICAS = 10_000
CHARACTERS = 4  # of a token, as English has them


class SimulatedCluster:
    """A trace, by arrival, through the server's router to replicas. ValueError: a number is out of range, or a request
    has a mode without costs, or does not fit into a replica's pages."""

    def __init__(self, trace: Sequence[TracedRequest], costs: ReplicaCosts, replicas: int) -> None:
        _check(trace, costs, replicas)
        self.replicas = replicas
        # that replicas were there for; after the last arrival only their steps count, since a cluster in use
        # would have further requests
        self.replica_seconds = 0.0
        self._trace, self._costs = trace, costs
        self._now = trace[0].arrival
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._replicas = {f"replica-{n}": SimulatedReplica(costs) for n in range(replicas)}
        self._router = ReplicaChooser(RoutingSettings(seed=0), self._clock)
        self._router.set_replicas(self._replicas)
        self._answers: list[AnswerState] = []

    def run(self) -> list[AnswerState]:
        """Simulate until every request is over; the answers in the order of their ends."""
        random, first = Random(0), self._now
        for id in self._replicas:
            self._at(self._now + random.random() * REPORT_SECONDS, partial(self._report, id))
        for age, request in enumerate(self._trace):
            cost = self._costs.mode(request.mode)
            rate = request.tokens_per_step or cost.tokens_per_step
            rows = request.rows_per_step or cost.rows_per_step
            while self._events[0][0] < request.arrival:
                self._next()
            self._now = request.arrival
            self._send(AnswerState(request, age, rate, rows))
        self.replica_seconds = (self._now - first) * len(self._replicas) - self._busy()
        while len(self._answers) < len(self._trace):
            self._next()
        self.replica_seconds += self._busy()
        return self._answers

    def _busy(self) -> float:
        return sum(replica.busy_until(self._now) for replica in self._replicas.values())

    def _clock(self) -> float:
        return BEGIN + self._now

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _next(self) -> None:
        self._now, _, event = heapq.heappop(self._events)
        event()

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
        )
        id = self._router.rank(asked)[0]
        self._router.routed(asked, id)
        arrive = partial(self._arrive, answer, self._replicas[id])
        self._at(self._now + self._costs.first_seconds, arrive)

    def _arrive(self, answer: AnswerState, replica: SimulatedReplica) -> None:
        ran = replica.runs
        replica.add(answer, self._now)
        if not ran:
            self._at(replica.wakes, partial(self._wake, replica))

    def _wake(self, replica: SimulatedReplica) -> None:
        over = replica.wake(self._now)
        for answer in over:
            self._router.ended(answer.request.id)
        self._answers += over
        if replica.runs:
            self._at(replica.wakes, partial(self._wake, replica))

    def _report(self, id: str) -> None:
        self._router.report(id, self._replicas[id].report(self._now, self._clock()))
        self._at(self._now + REPORT_SECONDS, partial(self._report, id))


def _check(trace: Sequence[TracedRequest], costs: ReplicaCosts, replicas: int) -> None:
    if not 1 <= replicas <= MOST_REPLICAS:
        raise ValueError(f"replicas={replicas} must be between 1 and {MOST_REPLICAS}")
    for one in trace:
        costs.mode(one.mode)
        pages = (one.prompt_tokens + one.answer_tokens) // costs.page_tokens + 2
        if pages > costs.pages:
            raise ValueError(
                f"request {one.id!r} needs {pages} pages of {costs.page_tokens} tokens, and a replica has {costs.pages}"
            )


def prompt_text(request: TracedRequest) -> str:
    """The beginning of a prompt, for the router, which compares texts: as long as the prompt's, and alike where
    its pieces are."""
    parts, room = [], MOST_CHARACTERS
    for name, tokens in request.text():
        parts.append(_text(name, min(CHARACTERS * tokens, room)))
        room -= len(parts[-1])
        if room <= 0:
            break
    return "".join(parts)


@lru_cache(10_000)
def _text(name: str, characters: int) -> str:
    """Text that only this name has."""
    word = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
    return (word * (characters // len(word) + 1))[:characters]
