"""One simulated replica: it batches requests as the engine does, and its steps take what a table says."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable

from fastslow.engine.core.latency_budget import LATER, SHARE
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.prefix_cache import SimulatedPrefixCache
from fastslow.tools.simulate.step import SimulatedStep

MEMORY = 0.1  # share of the newest in the running means that a report has


class SimulatedReplica:
    """A batch machine.

    Args:
        costs: what its steps take, and what it holds.
        others: how many other replicas of the same machine run steps now.

    Attributes:
        wakes: when its present step ends; infinity while it has nothing to do.
        busy_seconds: in steps that have ended.
        preempted: requests that lost their pages for a while.
    """

    def __init__(self, costs: ReplicaCosts, others: Callable[[], int] = lambda: 0) -> None:
        self.wakes = math.inf
        self.busy_seconds = 0.0
        self.preempted = 0
        self._costs = costs
        self._others = others
        self._cache = SimulatedPrefixCache(costs.page_tokens)
        self._step: SimulatedStep | None = None
        self._began = 0.0  # the step
        self._waiting: list[AnswerState] = []  # by rank
        self._reading: list[AnswerState] = []  # likewise
        self._quick: list[AnswerState] = []  # those that write and have a target
        self._writing: list[AnswerState] = []  # all others that write
        self._targets: Counter[float] = Counter()  # of all that run or wait
        self._last_target: tuple[float, float] | None = None  # the tightest, and when it was seen
        self._waited = 0.0  # by the newest that started
        self._prompt_rate = 0.0
        self._alone = {mode: costs.step({mode: 1.0}, {}) for mode in costs.modes}

    @property
    def runs(self) -> bool:
        """Whether it is in a step."""
        return self._step is not None

    @property
    def running(self) -> list[AnswerState]:
        """Those that read or write."""
        return [*self._reading, *self._quick, *self._writing]

    @property
    def answers(self) -> int:
        """How many run or wait."""
        return sum(map(len, (self._reading, self._quick, self._writing, self._waiting)))

    def busy_until(self, now: float) -> float:
        """Seconds in steps, the present one included."""
        return self.busy_seconds + (now - self._began if self.runs else 0.0)

    def add(self, answer: AnswerState, now: float) -> None:
        """A request comes."""
        answer.queued = now
        if answer.target is not None:
            self._targets[answer.target] += 1
        insort(self._waiting, answer, key=lambda one: one.rank)
        if self._step is None:
            self._begin(now)

    def wake(self, now: float) -> list[AnswerState]:
        """The step has ended: answers that are over."""
        step = self._step
        assert step is not None
        self.busy_seconds += now - self._began
        over = []
        for answers, share in ((self._quick, 1.0), (self._writing, step.share)):
            for answer in answers:
                answer.made += answer.rate * share
                if answer.made >= answer.goal:
                    over.append(answer)
        for answer in over:
            self._batch(answer).remove(answer)
        over += self._read_on(step, now)
        for answer in over:
            answer.made, answer.end = answer.request.answer_tokens, now
            if answer.target is not None:
                self._targets -= Counter((answer.target,))
            self._keep_pages(answer)
        self._begin(now)
        return over

    def report(self, now: float, at: float) -> ReplicaReport:
        """What the replica says of itself. at: the time as `time.time()` has it."""
        running, waiting = self.running, self._waiting
        step = self.wakes - self._began if self.runs else 0.0
        deep, quick = (
            max((now - one.queued for one in waiting if one.request.deep is kind), default=0.0)
            for kind in (True, False)
        )
        return ReplicaReport(
            running=dict(Counter(one.mode for one in running)),
            waiting=dict(Counter(one.mode for one in waiting)),
            deep=sum(one.request.deep for one in (*running, *waiting)),
            pages=self._costs.pages,
            step_seconds={mode: max(step, alone) for mode, alone in self._alone.items()},
            queue_seconds=max(deep, quick) if waiting else self._waited,
            prompt_rate=self._prompt_rate,
            at=at,
            urgent=sum(one.urgent for one in (*running, *waiting)),
            deep_queue_seconds=deep,
            quick_queue_seconds=quick,
            page_tokens=self._costs.page_tokens,
            places=self._costs.max_running,
        )

    def _batch(self, answer: AnswerState) -> list[AnswerState]:
        """Where it is while it writes."""
        return self._writing if answer.target is None else self._quick

    def _read_on(self, step: SimulatedStep, now: float) -> list[AnswerState]:
        """Prompts were read; those that are whole give a token, and write from now on, or are over."""
        over: list[AnswerState] = []
        if rows := sum(chunk for _, chunk in step.chunks):
            rate = rows / (now - self._began)
            self._prompt_rate += (MEMORY if self._prompt_rate else 1.0) * (rate - self._prompt_rate)
        for answer, chunk in step.chunks:
            answer.left -= chunk
            if answer.left:
                continue
            self._reading.remove(answer)
            answer.read_pages = 0
            self._cache.publish(answer.root, answer.request.prefix, answer.held)
            answer.shared = self._costs.page_tokens * sum(piece.pages for piece in answer.held)
            answer.first = now if answer.first is None else answer.first
            answer.made += 1
            (over if answer.made >= answer.goal else self._batch(answer)).append(answer)
        return over

    def _keep_pages(self, answer: AnswerState) -> None:
        """Its pages become those of the cache, without a user."""
        self._cache.publish(answer.root, answer.text, answer.held)
        self._cache.let_go(answer.held)

    # What runs next

    def _begin(self, now: float) -> None:
        """The next step."""
        limit = self._limit(now)
        step = self._compose(now, limit, True)
        while not self._fit_pages():
            self._preempt()
            step = self._compose(now, limit, False)  # it would start again at once
        if not self.running:
            self._step, self.wakes = None, math.inf
            return
        self._step, self._began = None, now
        seconds = step.seconds * self._costs.slowed(self._others())
        self._step, self.wakes = step, now + seconds

    def _limit(self, now: float) -> float | None:
        """Seconds that a step may take, as the engine's latency budget has it; None = any."""
        if self._targets:
            self._last_target = min(self._targets), now
        if self._last_target is None or now - self._last_target[1] >= LATER:
            return None
        return SHARE * self._last_target[0]

    def _compose(self, now: float, limit: float | None, admit: bool) -> SimulatedStep:
        """Who runs next: requests with a target before all others, decoding ones before prompts."""
        step = SimulatedStep(self._costs, limit, self._costs.prompt_rows)
        step.decode(self._quick, take_turns=False)
        self._read(step, True, now, admit)
        step.decode(self._writing, take_turns=True)
        self._read(step, False, now, admit)
        return step

    def _read(self, step: SimulatedStep, quick: bool, now: float, admit: bool) -> None:
        """Prompts of requests with a target, or of all others: first of those that run, then of those that wait."""
        for answer in self._reading:
            if (answer.target is not None) is quick and (room := step.room(answer)) > 0:
                step.read(answer, room)
        while admit and step.left > 0 and self._waiting:
            first = self._waiting[0]
            running = len(self._reading) + len(self._quick) + len(self._writing)
            if running >= self._costs.max_running or (quick and first.target is None):
                break
            room = step.room(first)
            if room <= 0 or not self._admit(first, now):
                break
            step.read(first, room)

    def _admit(self, answer: AnswerState, now: float) -> bool:
        """Open a request's pages. False: there are too few now."""
        page, length = self._costs.page_tokens, answer.length
        held, cached = self._cache.match(answer.root, answer.text, length - 1)
        self._cache.use(held)
        need = -(-length // page) - cached // page
        if self.running and self._held() + need > self._costs.pages:
            self._cache.let_go(held)
            return False
        del self._waiting[0]
        answer.held, answer.read_pages, answer.left = held, need, length - cached
        if answer.cached is None:
            answer.cached = cached
        self._waited = now - answer.queued
        insort(self._reading, answer, key=lambda one: one.rank[1:])
        return True

    def _held(self) -> float:
        """Pages with a user after one more step."""
        running = (*self._quick, *self._writing)
        tokens = sum([one.prompt + one.made + one.rate - one.shared for one in running])
        own = tokens / self._costs.page_tokens + len(running)  # each has a page not yet full
        reading = sum(one.read_pages for one in self._reading)
        return self._cache.pages - self._cache.idle + reading + own

    def _fit_pages(self) -> bool:
        """Evict what has to go for one step more. False: that is not enough."""
        need = self._held()
        if need > self._costs.pages and len(self.running) > 1:
            return False
        self._cache.evict(math.ceil(need + self._cache.idle - self._costs.pages))
        return True

    def _preempt(self) -> None:
        """The youngest of the least urgent gives its pages back and waits again."""
        victim = max(self.running, key=lambda one: (one.request.priority, one.age))
        if victim in self._reading:
            self._reading.remove(victim)
            self._cache.let_go(victim.held)
        else:
            self._batch(victim).remove(victim)
            victim.made = math.floor(victim.made + 1e-9)
            self._keep_pages(victim)
        victim.read_pages = 0
        self.preempted += 1
        insort(self._waiting, victim, key=lambda one: one.rank)
