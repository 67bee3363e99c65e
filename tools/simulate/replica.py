"""A simulated replica: requests in a batch, a prefix cache, and steps that take what a table says."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from fastslow.engine.core.latency_budget import LATER, LEAST, PATIENCE, SHARE
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.trace import Pieces, TracedRequest

# rows of a prompt that the limit of a step does not hold back
SLOW = max(1, LEAST // (PATIENCE + 1))
MEMORY = 0.1  # share of the newest in the running means that a report has


@dataclass(slots=True, eq=False)
class AnswerState:
    """Progress of a request."""

    request: TracedRequest
    age: int = 0  # its place among all that came
    rate: float = 1.0  # tokens that it gets from a step
    rows: float = 1.0  # that it runs in a step
    queued: float = 0.0  # when it came to its replica
    made: float = 0.0  # tokens of its answer, on average over steps: need not be whole
    first: float = 0.0  # when its first token came
    end: float = 0.0  # when its last one came
    cached: int = 0  # tokens of its prompt that were found in the cache
    left: int = 0  # that are to be read
    shared: int = 0  # that the cache holds

    @property
    def rank(self) -> tuple[bool, int]:
        """Its place in a queue: those with a target first, then the oldest."""
        return self.request.latency_ms is None, self.age

    @property
    def over(self) -> bool:
        return self.made >= self.request.answer_tokens - 1e-9  # a rounding error

    @property
    def first_after(self) -> float:
        """Seconds from its arrival to its first token."""
        return self.first - self.request.arrival

    @property
    def each(self) -> float:
        """Seconds of each token after the first; 0: there is no other."""
        return (self.end - self.first) / max(1, self.request.answer_tokens - 1)

    @property
    def in_time(self) -> bool:
        """True where the first token and the mean later one kept the target."""
        return max(self.first_after, self.each) <= (self.request.latency_ms or 0.0) / 1000


class SimulatedReplica:
    """A batch machine."""

    def __init__(self, costs: ReplicaCosts) -> None:
        self.runs = False  # it is in a step
        self.wakes = math.inf  # when its present step ends; infinity while it has nothing to do
        self._costs = costs
        self._cache = PrefixCache()
        self._busy = 0.0  # seconds in steps that have ended
        self._began = 0.0  # the step
        self._chunks: list[tuple[AnswerState, int]] = []  # rows of prompts in it
        self._waiting: list[AnswerState] = []  # by rank
        self._reading: list[AnswerState] = []  # likewise
        self._writing: list[AnswerState] = []
        self._targets: Counter[float] = Counter()  # milliseconds, of all that run or wait
        self._last_target = math.inf, -math.inf  # the tightest in seconds, and when it was seen
        self._waited = 0.0  # by the newest that started
        self._prompt_rate = 0.0
        self._alone = {mode: costs.step({mode: 1.0}, {}) for mode in costs.modes}

    def busy_until(self, now: float) -> float:
        """Seconds in steps, the present one included."""
        return self._busy + (now - self._began if self.runs else 0.0)

    def add(self, answer: AnswerState, now: float) -> None:
        """A request comes."""
        answer.queued = now
        if answer.request.latency_ms is not None:
            self._targets[answer.request.latency_ms] += 1
        insort(self._waiting, answer, key=lambda one: one.rank)
        if not self.runs:
            self._begin(now)

    def wake(self, now: float) -> list[AnswerState]:
        """The step has ended: answers that are over."""
        self._busy += now - self._began
        for answer in self._writing:
            answer.made += answer.rate
        self._read_on(now)
        over = [answer for answer in self._writing if answer.over]
        self._writing = [answer for answer in self._writing if not answer.over]
        for answer in over:
            request = answer.request
            answer.made, answer.end = request.answer_tokens, now
            if request.latency_ms is not None:
                self._targets -= Counter((request.latency_ms,))
            self._cache.add(request.mode, request.text(request.answer_tokens))
        self._begin(now)
        return over

    def report(self, now: float, at: float) -> ReplicaReport:
        """Make the report of the replica on itself. at: the time as `time.time()` has it."""
        running, waiting = [*self._reading, *self._writing], self._waiting
        step = self.wakes - self._began if self.runs else 0.0
        deep, quick = (
            max((now - one.queued for one in waiting if one.request.deep is kind), default=0.0)
            for kind in (True, False)
        )
        requests = [one.request for one in (*running, *waiting)]
        return ReplicaReport(
            running=dict(Counter(one.request.mode for one in running)),
            waiting=dict(Counter(one.request.mode for one in waiting)),
            deep=sum(one.deep for one in requests),
            pages=self._costs.pages,
            step_seconds={mode: max(step, alone) for mode, alone in self._alone.items()},
            queue_seconds=max(deep, quick) if waiting else self._waited,
            prompt_rate=self._prompt_rate,
            at=at,
            urgent=sum(one.latency_ms is not None and not one.deep for one in requests),
            deep_queue_seconds=deep,
            quick_queue_seconds=quick,
            page_tokens=self._costs.page_tokens,
            places=self._costs.max_running,
        )

    def _read_on(self, now: float) -> None:
        """Prompts were read; those that are whole give a token, and write from now on."""
        if rows := sum(chunk for _, chunk in self._chunks):
            rate = rows / (now - self._began)
            self._prompt_rate += (MEMORY if self._prompt_rate else 1.0) * (rate - self._prompt_rate)
        for answer, chunk in self._chunks:
            answer.left -= chunk
            if not answer.left:
                self._reading.remove(answer)
                self._cache.add(answer.request.mode, answer.request.prefix)
                answer.shared = answer.request.shared_tokens
                answer.first, answer.made = now, 1.0
                self._writing.append(answer)

    def _begin(self, now: float) -> None:
        """The next step: all that write have their rows, and prompts what is left of them."""
        costs = self._costs
        decode, prompts = defaultdict[str, float](float), defaultdict[str, float](float)
        seconds, room = 0.0, costs.prompt_rows - len(self._writing)
        for answer in self._writing:
            decode[answer.request.mode] += answer.rows
            seconds += costs.context_seconds * (answer.request.prompt_tokens + answer.made)
        limit = self._limit(now)
        while self._waiting and sum(one.left for one in self._reading) < room:
            if not self._start(self._waiting[0], now):
                break
        self._chunks = []
        for answer in self._reading:
            mode, chunk = answer.request.mode, min(answer.left, room)
            if answer.request.latency_ms is None and limit is not None:
                rows = sum(decode.values()) + sum(prompts.values())
                fit = costs.most_rows({mode, *decode, *prompts}, limit) - math.ceil(rows)
                chunk = min(chunk, fit if fit > 0 or self._chunks else SLOW)
            if chunk <= 0:
                break
            before = answer.request.prompt_tokens - answer.left
            seconds += costs.attention_seconds * chunk * (before + chunk / 2)
            prompts[mode] += chunk
            self._chunks.append((answer, chunk))
            room -= chunk
        self.runs, self.wakes = bool(self._writing or self._chunks), math.inf
        if self.runs:
            self._cache.trim(self._room())
            seconds += costs.step(decode, prompts)
            self._began, self.wakes = now, now + seconds

    def _limit(self, now: float) -> float | None:
        """Seconds of a step with prompts of requests without a target, as the latency budget has them; None = any."""
        if self._targets:
            self._last_target = min(self._targets) / 1000, now
        target, seen = self._last_target
        return SHARE * target if now - seen < LATER else None

    def _start(self, answer: AnswerState, now: float) -> bool:
        """Start the first request of the queue. False: there is no place, or no room for its prompt."""
        running = len(self._reading) + len(self._writing)
        length, page = answer.request.prompt_tokens, self._costs.page_tokens
        if running >= self._costs.max_running or (running and length > self._room()):
            return False
        found = self._cache.use(answer.request.mode, answer.request.text())
        cached = min(found, length - 1) // page * page
        del self._waiting[0]
        answer.shared, answer.cached = cached, cached
        answer.left = length - cached
        self._waited = now - answer.queued
        insort(self._reading, answer, key=lambda one: one.rank)
        return True

    def _room(self) -> float:
        """Tokens for which there is room beside what requests hold alone; each has a page that is not full."""
        page = self._costs.page_tokens
        own = sum(
            one.request.prompt_tokens + one.made - one.shared + page
            for one in (*self._reading, *self._writing)
        )
        return self._costs.pages * page - own


class PrefixCache:
    """Pieces of texts by mode: least recently used first to go, from the ends of texts to their beginnings."""

    def __init__(self) -> None:
        self._tokens = 0
        self._pieces = OrderedDict[int, int]()  # a piece after those before it -> its tokens here

    def use(self, mode: str, text: Pieces) -> int:
        """Count the tokens of the beginning of a text that it holds; they are used now."""
        found, used = 0, []
        for piece, tokens in _chained(mode, text):
            held = self._pieces.get(piece, 0)
            if held:
                used.append(piece)
            found += min(held, tokens)
            if held < tokens:
                break
        for piece in reversed(used):
            self._pieces.move_to_end(piece)
        return found

    def add(self, mode: str, text: Pieces) -> None:
        """A text was read or written."""
        for piece, tokens in reversed(list(_chained(mode, text))):
            held = self._pieces.pop(piece, 0)
            self._pieces[piece] = max(held, tokens)
            self._tokens += max(0, tokens - held)

    def trim(self, most: float) -> None:
        """Drop what is above this number of tokens."""
        while self._tokens > most and self._pieces:
            piece, held = self._pieces.popitem(last=False)
            kept = max(0, held - math.ceil(self._tokens - most))
            self._tokens -= held - kept
            if kept:
                self._pieces[piece] = kept
                self._pieces.move_to_end(piece, last=False)


def _chained(mode: str, text: Pieces) -> Iterator[tuple[int, int]]:
    """Each piece as a hash of it and all before it, with its tokens."""
    piece = hash(mode)
    for name, tokens in text:
        piece = hash((piece, name))
        yield piece, tokens
