"""One simulated replica: the engine's schedule with the seconds of a cost table.

Between two changes of its batch all steps are alike, so that any number of them is one event.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable

from fastslow.engine.core.latency_budget import LATER, SHARE
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.batch import DecodingBatch
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.prefix_cache import SimulatedPrefixCache
from fastslow.tools.simulate.queue import WaitingQueue
from fastslow.tools.simulate.step import ComposedStep, StepRun

NEVER = math.inf
MOST_STEPS = 10**9
MEMORY = 0.1  # share of the newest in the running means that a report tells


class SimulatedReplica:
    """A batch machine.

    Args:
        id: its name.
        costs: what its steps take, and what it holds.
        most_steps: of one run; 1 = each step is an event of its own, which tests compare.
        others: how many other replicas of the same machine run steps now.

    Attributes:
        wakes: when its present run ends; infinity while it has nothing to do.
        busy_seconds: in steps.
        preempted: requests that lost their pages for a while.
    """

    def __init__(
        self,
        id: str,
        costs: ReplicaCosts,
        most_steps: int = MOST_STEPS,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self.id = id
        self.wakes = NEVER
        self.busy_seconds = 0.0
        self.preempted = 0
        self._costs = costs
        self._most_steps = most_steps
        self._others = others
        self._cache = SimulatedPrefixCache(costs.page_tokens)
        self._run: StepRun | None = None
        self._queue = WaitingQueue()
        self._blocked = False  # nobody starts in the step that is planned
        self._reading: list[AnswerState] = []  # in the order in which they are read
        self._batches = DecodingBatch(), DecodingBatch()  # with a target, without
        self._read_pages = 0  # private ones of those that read
        self._targets: Counter[float] = Counter()  # seconds, of all that run or wait
        self._last_target: tuple[float, float] | None = (
            None  # the tightest one, and when it was seen
        )
        self._running: Counter[str] = Counter()  # by mode
        self._deep = 0
        self._urgent = 0
        self._waited = 0.0
        self._tokens_per_step: dict[str, float] = {}
        self._prompt_rate = 0.0
        self._alone = {m: costs.step({m: 1.0}, {}) for m in costs.modes}

    @property
    def runs(self) -> bool:
        """Whether it is in a step."""
        return self._run is not None

    @property
    def answers(self) -> int:
        """Those that run or wait."""
        return self._running.total() + len(self._queue)

    def busy_until(self, now: float) -> float:
        """Seconds in steps, the present one included."""
        return self.busy_seconds + (now - self._run.start if self._run is not None else 0.0)

    def add(self, answer: AnswerState, now: float) -> None:
        """A request comes."""
        answer.queued = now
        target = answer.target
        if target is not None:
            self._targets[target] += 1
            self._last_target = min(self._targets), now
        self._deep += answer.request.deep
        self._urgent += answer.urgent
        self._queue.add(answer)
        if self._run is None:
            self._plan(now)
        elif target is not None or self._running.total() < self._costs.max_running:
            steps = max(1, self._run.over_at(now))
            if steps < self._run.steps:
                self._run.steps = steps
                self.wakes = self._run.end(steps)

    def wake(self, now: float) -> tuple[list[AnswerState], list[AnswerState]]:
        """The run is over: answers that got their first token, and those that are over."""
        run = self._run
        assert run is not None
        self.busy_seconds += now - run.start
        if self._targets:  # the engine sees them when a step begins
            self._last_target = min(self._targets), run.end(run.steps - 1)
        quick, others = self._batches
        quick.advance(run.steps)
        others.advance(run.steps * run.step.share)
        self._evict(self._held(quick.clock, others.clock))
        read = self._read_on(run, now)
        over = [answer for answer in read if answer.last_token_was_first]
        over += quick.pop_over() + others.pop_over()
        for answer in over:
            self._end(answer)
        self._plan(now)
        return read, over

    def stop(self, now: float) -> list[AnswerState]:
        """The replica dies: all that ran or waited, with the tokens that they have."""
        left = [*self._reading, *self._queue.waiting()]
        run = self._run
        steps = 0 if run is None else min(run.steps, run.over_at(now))
        if run is not None and run.end(steps) > now:
            steps -= 1  # the step that was under way gives nothing
        for batch, share in zip(self._batches, (1.0, run.step.share if run is not None else 1.0)):
            batch.advance(max(0, steps) * share)
            for answer in batch.clear():
                answer.made = batch.made(answer)
                left.append(answer)
        if run is not None:
            self.busy_seconds += now - run.start
        self._run, self.wakes = None, NEVER
        return left

    def report(self, now: float, at: float) -> ReplicaReport:
        """What the replica says of itself. at: the time as `time.time()` has it."""
        step = self._run.first if self._run is not None else 0.0
        deep, quick = self._queue_seconds(True, now), self._queue_seconds(False, now)
        held = self._held(*(batch.clock for batch in self._batches))
        return ReplicaReport(
            running={mode: n for mode, n in self._running.items() if n},
            waiting=self._queue.by_mode(),
            deep=self._deep,
            pages=self._costs.pages,
            pages_free=max(0, self._costs.pages - math.ceil(held)),
            tokens_per_step=dict(self._tokens_per_step),
            step_seconds={mode: max(step, alone) for mode, alone in self._alone.items()},
            queue_seconds=max(deep, quick) if len(self._queue) else self._waited,
            prompt_rate=self._prompt_rate,
            at=at,
            urgent=self._urgent,
            deep_queue_seconds=deep,
            quick_queue_seconds=quick,
            page_tokens=self._costs.page_tokens,
            places=self._costs.max_running,
        )

    def _queue_seconds(self, deep: bool, now: float) -> float:
        oldest = self._queue.oldest_of(deep)
        return 0.0 if oldest is None else now - oldest.queued

    def _read_on(self, run: StepRun, now: float) -> list[AnswerState]:
        """Prompts were read; those that are whole decode from now on."""
        whole = []
        rows = sum(chunk for _, chunk in run.step.chunks) * run.steps
        if rows and now > run.start:
            rate = rows / (now - run.start)
            self._prompt_rate += (MEMORY if self._prompt_rate else 1.0) * (rate - self._prompt_rate)
        for answer, chunk in run.step.chunks:
            answer.left -= chunk * run.steps
            if answer.left > 0:
                continue
            whole.append(answer)
            self._reading.remove(answer)
            self._read_pages -= answer.read_pages
            self._cache.publish(answer.root, answer.request.prefix, answer.held)
            if answer.first is None:
                answer.first = now
            answer.made += 1
            if not answer.last_token_was_first:
                answer.private = answer.length - answer.shared(self._costs.page_tokens)
                self._batches[answer.target is None].add(answer)
        return whole

    def _end(self, answer: AnswerState) -> None:
        mode = answer.request.mode
        self._leave(answer)
        self._running[mode] -= 1
        known = self._tokens_per_step.get(mode, answer.rate)
        self._tokens_per_step[mode] = known + MEMORY * (answer.rate - known)
        answer.made = answer.request.answer_tokens
        self._keep_pages(answer)

    def _leave(self, answer: AnswerState) -> None:
        """It neither runs nor waits any more."""
        self._deep -= answer.request.deep
        self._urgent -= answer.urgent
        if (target := answer.target) is not None:
            self._targets[target] -= 1
            if not self._targets[target]:
                del self._targets[target]

    def _keep_pages(self, answer: AnswerState) -> None:
        """Its pages become those of the cache, without a user."""
        self._cache.publish(answer.root, answer.text, answer.held)
        self._cache.let_go(answer.held)
        answer.held = []

    # What runs next

    def _plan(self, now: float) -> None:
        """The next run of equal steps."""
        if self._targets:
            self._last_target = min(self._targets), now
        limit = self._limit(now)
        step = self._compose(now, limit)
        most = self._most_steps
        while not self._fit_pages(step.share):
            self._preempt()
            self._blocked = True  # it would start again at once
            step = self._compose(now, limit)
            most = 1
        self._blocked = False
        if not (step.decode or step.chunks):
            self._run, self.wakes = None, NEVER
            return
        run = step.run(now)
        self._add_context(run)
        slowed = self._costs.slowed(self._others())
        run.first, run.more = slowed * run.first, slowed * run.more
        run.steps = self._steps(run, limit, most)
        self._run, self.wakes = run, run.end(run.steps)

    def _compose(self, now: float, limit: float | None) -> ComposedStep:
        """Who runs next: requests with a target before all others, decoding ones before prompts."""
        quick, others = self._batches
        step = ComposedStep(self._costs, limit, self._costs.prompt_rows)
        step.add_quick(quick.rows, len(quick))
        self._read(step, True, now)
        step.add_others(others.rows, len(others))
        self._read(step, False, now)
        return step

    def _limit(self, now: float) -> float | None:
        """Seconds that a step may take, as the engine's latency budget has it; None = any."""
        if self._last_target is None or now - self._last_target[1] >= LATER:
            return None
        return SHARE * self._last_target[0]

    def _read(self, step: ComposedStep, quick: bool, now: float) -> None:
        """Prompts of requests with a target, or of all others: first of those that run, then of those that wait."""
        for answer in self._reading:
            if (answer.target is not None) is quick and (room := step.room(answer)) > 0:
                step.read(answer, room)
        most = self._costs.max_running
        while step.left > 0 and self._running.total() < most and not self._blocked:
            first = self._queue.first
            if first is None or (quick and first.target is None):
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
        if self._running.total() and self._next_held(1.0) + need > self._costs.pages:
            self._cache.let_go(held)
            return False
        self._queue.take(answer)
        answer.held, answer.read_pages, answer.left = held, need, length - cached
        if answer.cached is None:
            answer.cached, answer.started = cached, now
        self._waited = now - answer.queued
        self._read_pages += need
        self._running[answer.request.mode] += 1
        insort(self._reading, answer, key=lambda one: (one.request.priority, one.age))
        return True

    def _next_held(self, share: float) -> float:
        """Pages with a user after one more step."""
        quick, others = self._batches
        return self._held(quick.clock + 1, others.clock + share)

    def _held(self, *clocks: float) -> float:
        """Pages with a user, when the batches are so far."""
        own = sum(
            batch.pages(clock, self._costs.page_tokens)
            for batch, clock in zip(self._batches, clocks)
        )
        return self._cache.pages - self._cache.idle + self._read_pages + own

    def _fit_pages(self, share: float) -> bool:
        """Evict what has to go for one step more. False: that is not enough."""
        need = self._next_held(share)
        if need > self._costs.pages and self._running.total() > 1:
            return False
        self._evict(need)
        return True

    def _evict(self, held: float) -> None:
        """Make room for pages with a user."""
        self._cache.evict(math.ceil(held + self._cache.idle - self._costs.pages))

    def _preempt(self) -> None:
        """The youngest of the least urgent gives its pages back and waits again."""
        running = [*self._reading, *self._batches[0].answers(), *self._batches[1].answers()]
        victim = max(running, key=lambda one: (one.request.priority, one.age))
        if victim in self._reading:
            self._reading.remove(victim)
            self._read_pages -= victim.read_pages
            self._cache.let_go(victim.held)
            victim.held = []
        else:
            batch = self._batches[victim.target is None]
            victim.made = batch.remove(victim)
            self._keep_pages(victim)
        self._running[victim.request.mode] -= 1
        self.preempted += 1
        self._queue.add(victim)

    def _add_context(self, run: StepRun) -> None:
        """What reading the texts so far adds to the first step, and to each later one."""
        costs, quick, others = self._costs, *self._batches
        if costs.context_seconds:
            share = run.step.share
            run.first += costs.context_seconds * (quick.context() + share * others.context())
            run.more += costs.context_seconds * (quick.growth + share * share * others.growth)
        if costs.attention_seconds:
            for answer, rows in run.step.chunks:
                read = answer.length - answer.left
                run.first += costs.attention_seconds * rows * (read + rows / 2)
                run.more += costs.attention_seconds * rows * rows

    def _steps(self, run: StepRun, limit: float | None, most: int) -> int:
        """How many steps are like the first one, `most` at most."""
        if run.step.chunks:
            answer, rows = run.step.chunks[-1]
            alone = len(run.step.chunks) == 1
            most = min(most, (answer.left - 1) // rows) if alone and answer.left > rows else 1
        quick, others = self._batches
        most = min(most, quick.steps_to_end(1.0), others.steps_to_end(run.step.share))
        growth = quick.growth + run.step.share * others.growth
        if most > 1 and growth:
            page = self._costs.page_tokens
            room = self._costs.pages - self._held(quick.clock, others.clock)
            most = max(1, min(most, math.floor(room * page / growth)))
        if most > 1 and limit is not None and not self._targets and self._last_target is not None:
            run.steps = most
            most = max(1, min(most, run.over_at(self._last_target[1] + LATER)))
        return most
