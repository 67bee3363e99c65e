"""Many simulated replicas behind one router: events in the order of their time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.scaling import ScalingState, replicas_wanted
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.prompt_text import prompt_text
from fastslow.tools.simulate.replica import MOST_STEPS, SimulatedReplica
from fastslow.tools.simulate.routers import router
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import TracedRequest

BEGIN = 1.0e9  # of the simulated clock, in seconds since 1970: routers take times near 0 for none
MOST_REPORTS = 1e8  # each is an event: so many take an hour
SHORTEST_LIFE = 1.0  # seconds that replicas live, on average: below that nothing is ever over
TOLD_EVERY = 2_000  # events between two reports of progress


@dataclass(slots=True)
class ClusterResult:
    """What came of a simulation.

    Attributes:
        answers: every request of the trace, with its times.
        ends: seconds at which each of `answers` was over.
        seconds: from the first arrival to the last end.
        replica_seconds: that replicas were there for, starting ones included; behind the last arrival only
            their steps count, since a cluster in use would have further requests.
        busy_seconds: of these, in steps.
        most_replicas: that were there at once.
        deaths, continued: of replicas, and requests that went on elsewhere.
        preempted: requests that lost their pages for a while.
        sizes: (seconds, replicas), whenever their number changed.
    """

    answers: list[AnswerState] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    seconds: float = 0.0
    replica_seconds: float = 0.0
    busy_seconds: float = 0.0
    most_replicas: int = 0
    deaths: int = 0
    continued: int = 0
    preempted: int = 0
    sizes: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Member:
    """A replica from its start to its end; it answers from `ready` on."""

    replica: SimulatedReplica
    machine: set[str]  # names of all replicas there
    born: float
    ready: bool = False
    busy: float = 0.0  # seconds in steps until the last arrival
    leaving: bool = False  # no more is sent to it, and it goes when it is empty
    here: dict[str, tuple[AnswerState, RoutedRequest]] = field(default_factory=dict)


class SimulatedCluster:
    """A trace through a router to replicas.

    Args:
        trace: by arrival, each with an id of its own.
        costs: of every replica.
        settings: see there.
        told: hears the share of answers that are over, from time to time.
        most_steps: see `SimulatedReplica`.

    Raises:
        ValueError: a request has a mode without costs, or does not fit into a replica's pages; or the
            simulation would hardly end.
    """

    def __init__(
        self,
        trace: Sequence[TracedRequest],
        costs: ReplicaCosts,
        settings: ClusterSettings,
        told: Callable[[float], None] = lambda share: None,
        most_steps: int = MOST_STEPS,
    ) -> None:
        self._trace, self._costs, self._settings, self._told = trace, costs, settings, told
        # how many others run steps may change with each
        self._most_steps = most_steps if settings.machine_replicas == 1 else 1
        check_trace(trace, costs)
        _check_size(trace, costs, settings)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count()
        self._random = Random(settings.seed)
        self._members: dict[str, _Member] = {}
        self._machines: list[set[str]] = []
        self._router = router(
            settings.router,
            self._length,
            self._clock,
            replace(settings.routing, seed=settings.seed),
        )
        self._held: list[AnswerState] = []  # there was no replica for them
        self._reports: dict[str, ReplicaReport] = {}
        self._scaling = ScalingState()
        self._result = ClusterResult()

    def run(self) -> ClusterResult:
        """Simulate until every request is over."""
        settings, result = self._settings, self._result
        start = self._trace[0].arrival
        self._now = start
        for _ in range(settings.replicas):
            self._start(ready=True)
        self._changed()
        if settings.scaling is not None:
            self._at(start + settings.scaling_seconds, self._scale)
        arrivals = iter(enumerate(self._trace))
        following = next(arrivals, None)
        for count in itertools.count():
            if len(result.ends) == len(self._trace):
                break
            if count % TOLD_EVERY == 0:
                self._told(len(result.ends) / len(self._trace))
            if following is not None and following[1].arrival <= self._events[0][0]:
                place, request = following
                self._now = request.arrival
                self._send(self._state(request, place))
                following = next(arrivals, None)
                if following is None:
                    for member in self._members.values():
                        member.busy = member.replica.busy_until(self._now)
                continue
            self._now, _, event = heapq.heappop(self._events)
            event()
        result.seconds = self._now - start
        for member in list(self._members.values()):
            self._gone(member)
        return result

    def _state(self, request: TracedRequest, age: int) -> AnswerState:
        cost = self._costs.mode(request.mode)
        rate = request.tokens_per_step or cost.tokens_per_step
        return AnswerState(request, age, rate, request.rows_per_step or cost.rows_per_step)

    def _clock(self) -> float:
        return BEGIN + self._now

    def _length(self, id: str) -> int:
        member = self._members.get(id)
        return 0 if member is None else member.replica.answers

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    # Requests

    def _send(self, answer: AnswerState) -> None:
        """To the replica that the router ranks first."""
        request = answer.request
        asked = RoutedRequest(
            id=request.id,
            mode=request.mode,
            deep=request.deep,
            prompt=prompt_text(request),
            prompt_tokens=answer.length,
            max_tokens=request.max_tokens or request.answer_tokens,
            latency_ms=request.latency_ms,
            memory_key=request.memory_key,
            avoid=(answer.replica,) if answer.replica else (),
        )
        ranked = self._router.rank(asked)
        if not ranked:
            self._held.append(answer)
            return
        id = ranked[0]
        self._router.routed(asked, id)
        answer.replica = id
        answer.sent += 1
        member = self._members[id]
        member.here[request.id] = answer, asked
        if self._costs.first_seconds:
            self._at(self._now + self._costs.first_seconds, lambda: self._arrive(answer, id))
        else:
            self._arrive(answer, id)

    def _arrive(self, answer: AnswerState, id: str) -> None:
        """It is at its replica, if that still lives."""
        member = self._members.get(id)
        if member is None or answer.request.id not in member.here or answer.replica != id:
            return
        before = member.replica.wakes
        member.replica.add(answer, self._now)
        self._await(member, before)

    def _await(self, member: _Member, before: float) -> None:
        time = member.replica.wakes
        if time != before and time < math.inf:
            self._at(time, lambda: self._wake(member, time))

    def _wake(self, member: _Member, time: float) -> None:
        replica = member.replica
        if replica.wakes != time:
            return  # its run was cut short
        _, over = replica.wake(self._now)
        for answer in over:
            self._router.ended(answer.request.id)
            del member.here[answer.request.id]
            self._result.answers.append(answer)
            self._result.ends.append(self._now)
        self._await(member, time)
        if member.leaving and not member.here:
            self._gone(member)
            self._changed()

    # Replicas

    def _start(self, ready: bool) -> None:
        id = f"replica-{next(self._names)}"
        machine = self._placed(id)

        def others() -> int:
            return sum(self._members[one].replica.runs for one in machine if one != id)

        replica = SimulatedReplica(id, self._costs, self._most_steps, others)
        member = self._members[id] = _Member(replica, machine, self._now)
        if ready:
            self._ready(member)
        else:
            self._at(self._now + self._costs.start_seconds, lambda: self._ready(member))
        if self._settings.mtbf_hours < math.inf:
            life = self._random.expovariate(1 / (3600 * self._settings.mtbf_hours))
            self._at(self._now + life, lambda: self._die(member))

    def _placed(self, id: str) -> set[str]:
        """The first machine that has a place for a replica, as the names of those there."""
        for machine in self._machines:
            if len(machine) < self._settings.machine_replicas:
                machine.add(id)
                return machine
        self._machines.append({id})
        return self._machines[-1]

    def _ready(self, member: _Member) -> None:
        if member.replica.id not in self._members or member.leaving:
            return
        member.ready = True
        every = self._settings.report_seconds
        self._at(self._now + self._random.random() * every, lambda: self._report(member))
        if self._now > self._trace[0].arrival:
            self._changed()
            held, self._held = self._held, []
            for answer in held:
                self._send(answer)

    def _changed(self) -> None:
        """Other replicas than before answer."""
        open_ones = [id for id, m in self._members.items() if m.ready and not m.leaving]
        self._router.set_replicas(open_ones)
        there = len(self._members)
        self._result.most_replicas = max(self._result.most_replicas, there)
        self._result.sizes.append((self._now, there))

    def _report(self, member: _Member) -> None:
        id = member.replica.id
        if id not in self._members or member.leaving:
            return
        report = member.replica.report(self._now, self._clock())
        self._router.report(id, report)
        self._reports[id] = report
        self._at(self._now + self._settings.report_seconds, lambda: self._report(member))

    def _die(self, member: _Member) -> None:
        """It is gone at once; what it had goes on elsewhere. Another one is started, unless it was to go."""
        if member.replica.id not in self._members:
            return
        self._result.deaths += 1
        member.replica.stop(self._now)
        left = list(member.here.values())
        self._gone(member)
        if not member.leaving:
            self._start(ready=False)
        self._changed()
        for answer, asked in left:
            self._router.ended(asked.id)
            self._result.continued += answer.made > 0
            answer.held, answer.left, answer.read_pages = [], 0, 0
            self._send(answer)

    def _gone(self, member: _Member) -> None:
        del self._members[member.replica.id]
        member.machine.discard(member.replica.id)
        self._reports.pop(member.replica.id, None)
        busy, last = member.replica.busy_until(self._now), self._trace[-1].arrival
        self._result.busy_seconds += busy
        self._result.replica_seconds += max(0.0, min(self._now, last) - member.born)
        if self._now > last:
            self._result.replica_seconds += busy - member.busy
        self._result.preempted += member.replica.preempted

    def _scale(self) -> None:
        """More or fewer replicas, as the server's own rule has it."""
        scaling = self._settings.scaling
        assert scaling is not None
        staying = [m for m in self._members.values() if not m.leaving]
        wanted, self._scaling = replicas_wanted(
            list(self._reports.values()), len(staying), self._scaling, scaling, self._clock()
        )
        for _ in range(wanted - len(staying)):
            self._start(ready=False)
        if wanted < len(staying):
            # those that are still starting first, then those with the least to do
            order = sorted(staying, key=lambda m: (m.ready, len(m.here)))
            for member in order[: len(staying) - wanted]:
                member.leaving = True
                self._reports.pop(member.replica.id, None)
                if not member.here:
                    self._gone(member)
        if wanted != len(staying):
            self._changed()
        self._at(self._now + self._settings.scaling_seconds, self._scale)


def check_trace(trace: Sequence[TracedRequest], costs: ReplicaCosts) -> None:
    """ValueError: a request has a mode without costs, or does not fit into a replica's pages."""
    if not trace:
        raise ValueError("the trace has no request")
    page = costs.page_tokens
    for mode in {request.mode for request in trace}:
        costs.mode(mode)
    for request in trace:
        pages = (request.prompt_tokens + request.answer_tokens) // page + 2
        if pages > costs.pages:
            raise ValueError(
                f"request {request.id!r} needs {pages} pages of {page} tokens, and a replica has {costs.pages}"
            )


def _check_size(
    trace: Sequence[TracedRequest], costs: ReplicaCosts, settings: ClusterSettings
) -> None:
    """Raises:
    ValueError: the simulation would never end, or hardly.
    """
    least = max(SHORTEST_LIFE, costs.start_seconds) / 3600
    if settings.mtbf_hours < least:
        raise ValueError(
            f"mtbf_hours={settings.mtbf_hours:g} must be at least {least:.3g}: "
            "replicas would die while they start"
        )
    if settings.machine_replicas > 1 and not costs.slowdown:
        raise ValueError(
            f"machine_replicas={settings.machine_replicas} needs costs with a slowdown: "
            "`fastslow simulate measure --beside N` measures it"
        )
    span = _least_seconds(trace, costs)
    scaling = settings.scaling
    replicas = max(settings.replicas, 0 if scaling is None else scaling.most)
    reports = span / settings.report_seconds * replicas
    if reports > MOST_REPORTS:
        raise ValueError(
            f"{replicas} replicas make {reports:.3g} reports in the {span:.3g} s of this "
            f"trace, more than {MOST_REPORTS:g}: take a shorter trace, or a report_seconds above "
            f"{settings.report_seconds:g}"
        )


def _least_seconds(trace: Sequence[TracedRequest], costs: ReplicaCosts) -> float:
    """What the simulation lasts at least: until the last answer is over, if none has to wait."""
    alone = {mode: costs.step({mode: 1.0}, {}) for mode in {one.mode for one in trace}}
    ends = []
    for one in trace:
        steps = one.answer_tokens / (one.tokens_per_step or costs.mode(one.mode).tokens_per_step)
        own = one.prompt_tokens - sum(tokens for _, tokens in one.prefix)
        seconds = max(steps, own / costs.prompt_rows) * alone[one.mode]
        ends.append(one.arrival + costs.first_seconds + seconds)
    return max(ends) - trace[0].arrival
