"""One simulated replica: requests in a batch, a prefix cache, and steps that take what a table says."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from fastslow.engine.core.latency_budget import LATER, LEAST, PATIENCE, SHARE
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.tools.simulate.costs import ReplicaCosts
from fastslow.tools.simulate.trace import Pieces, TracedRequest

SLOW = max(
    1, LEAST // (PATIENCE + 1)
)  # rows of a prompt that the limit of a step does not hold back
MEMORY = 0.1  # share of the newest in the running means that a report has


@dataclass(slots=True, eq=False)
class AnswerState:
    """How far a request is.

    Attributes:
        request: of the trace.
        age: its place among all that came.
        rate, rows: tokens that it gets from a step, and rows that it runs in one.
        queued: when it came to its replica.
        made: tokens of its answer, on average over steps: need not be whole.
        first, end: when its first token came, and its last one.
        cached: tokens of its prompt that were found in the cache.
        held: pieces of the replica's prefix cache that it holds.
        left: tokens of its prompt that are to be read.
        shared: tokens of its prompt that the cache holds.
    """

    request: TracedRequest
    age: int
    rate: float
    rows: float
    queued: float = 0.0
    made: float = 0.0
    first: float = 0.0
    end: float = 0.0
    cached: int = 0
    held: list[CachedPiece] = field(default_factory=list)
    left: int = 0
    shared: int = 0

    @property
    def rank(self) -> tuple[bool, int]:
        """Its place in a queue: those with a target first, then the oldest."""
        return self.request.latency_ms is None, self.age

    @property
    def own_tokens(self) -> float:
        """Tokens of keys and values that it holds besides the cache's."""
        return self.request.prompt_tokens + self.made - self.shared

    @property
    def over(self) -> bool:
        return self.made >= self.request.answer_tokens - 1e-9  # a rounding error


class SimulatedReplica:
    """A batch machine.

    Args:
        costs: what its steps take, and what it holds.
        others: how many other replicas of the same machine run steps now.

    Attributes:
        runs: whether it is in a step.
        wakes: when its present step ends; infinity while it has nothing to do.
        busy_seconds: in steps that have ended.
    """

    def __init__(self, costs: ReplicaCosts, others: Callable[[], int] = lambda: 0) -> None:
        self.runs = False
        self.wakes = math.inf
        self.busy_seconds = 0.0
        self._costs = costs
        self._others = others
        self._cache = PrefixCache()
        self._began = 0.0  # the step
        self._chunks: list[tuple[AnswerState, int]] = []  # rows of prompts in it
        self._waiting: list[AnswerState] = []  # by rank
        self._reading: list[AnswerState] = []  # likewise
        self._writing: list[AnswerState] = []
        self._targets: Counter[float] = Counter()  # milliseconds, of all that run or wait
        self._last_target = math.inf, -math.inf  # the tightest, and when it was seen
        self._waited = 0.0  # by the newest that started
        self._prompt_rate = 0.0
        self._alone = {mode: costs.step({mode: 1.0}, {}) for mode in costs.modes}

    def busy_until(self, now: float) -> float:
        """Seconds in steps, the present one included."""
        return self.busy_seconds + (now - self._began if self.runs else 0.0)

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
        self.busy_seconds += now - self._began
        for answer in self._writing:
            answer.made += answer.rate
        self._read_on(now)
        over = [answer for answer in self._writing if answer.over]
        self._writing = [answer for answer in self._writing if not answer.over]
        for answer in over:
            mode = answer.request.mode
            answer.made, answer.end = answer.request.answer_tokens, now
            if answer.request.latency_ms is not None:
                self._targets -= Counter((answer.request.latency_ms,))
            self._cache.publish(
                mode, answer.request.text(answer.request.answer_tokens), answer.held
            )
            self._cache.let_go(answer.held)
        self._begin(now)
        return over

    def report(self, now: float, at: float) -> ReplicaReport:
        """What the replica says of itself. at: the time as `time.time()` has it."""
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
                self._cache.publish(answer.request.mode, answer.request.prefix, answer.held)
                answer.shared = sum(tokens for _, tokens in answer.request.prefix)
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
        while self._waiting and sum(one.left for one in self._reading) < room:
            if not self._admit(self._waiting[0], now):
                break
        self._chunks = []
        limit = self._limit(now)
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
            self._cache.evict(-self._free(idle=False))
            seconds = (seconds + costs.step(decode, prompts)) * costs.slowed(self._others())
            self._began, self.wakes = now, now + seconds

    def _limit(self, now: float) -> float | None:
        """Seconds of a step with prompts of requests without a target, as the engine's latency budget has them;
        None = any."""
        if self._targets:
            self._last_target = min(self._targets) / 1000, now
        target, seen = self._last_target
        return SHARE * target if now - seen < LATER else None

    def _admit(self, answer: AnswerState, now: float) -> bool:
        """Start the first request of the queue. False: there is no place, or no room for its prompt."""
        running = len(self._reading) + len(self._writing)
        if running >= self._costs.max_running:
            return False
        length, mode = answer.request.prompt_tokens, answer.request.mode
        held, found = self._cache.match(mode, answer.request.text())
        cached = min(found, length - 1) // self._costs.page_tokens * self._costs.page_tokens
        self._cache.use(held)
        if running and length - cached > self._free():
            self._cache.let_go(held)
            return False
        del self._waiting[0]
        answer.held, answer.shared, answer.cached = held, cached, cached
        answer.left = length - cached
        self._waited = now - answer.queued
        insort(self._reading, answer, key=lambda one: one.rank)
        return True

    def _free(self, idle: bool = True) -> float:
        """Tokens for which there is room; with what the cache holds for nobody, or without."""
        cached = self._cache.tokens - (self._cache.idle if idle else 0)
        page = self._costs.page_tokens  # each has one that is not full
        own = sum([one.own_tokens + page for one in (*self._reading, *self._writing)])
        return self._costs.pages * self._costs.page_tokens - cached - own


@dataclass(slots=True, eq=False)
class CachedPiece:
    """A piece of text after those before it.

    Attributes:
        among: those that continue the same text, by name.
        tokens: of its beginning that are held.
        users: running requests that hold it.
    """

    among: dict[Hashable, CachedPiece]
    name: Hashable
    tokens: int = 0
    users: int = 0
    after: dict[Hashable, CachedPiece] = field(default_factory=dict)


class PrefixCache:
    """Pieces of texts by mode: least recently used first to go, from the ends of texts to their beginnings.

    Attributes:
        tokens, idle: that are held; of them, those without a user.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.idle = 0
        self._first: dict[str, dict[Hashable, CachedPiece]] = {}
        self._unused: dict[CachedPiece, None] = {}  # the least recently used first

    def match(self, mode: str, text: Pieces) -> tuple[list[CachedPiece], int]:
        """The pieces that a text begins with, and how many of its tokens they hold."""
        known, found, held = self._first.get(mode, {}), [], 0
        for name, tokens in text:
            piece = known.get(name)
            if piece is None:
                break
            found.append(piece)
            held += min(tokens, piece.tokens)
            if tokens > piece.tokens:
                break
            known = piece.after
        return found, held

    def use(self, pieces: Sequence[CachedPiece]) -> None:
        """A request holds them."""
        for piece in pieces:
            if not piece.users:
                del self._unused[piece]
                self.idle -= piece.tokens
            piece.users += 1

    def let_go(self, pieces: list[CachedPiece]) -> None:
        """A request holds them no longer: they stay until they are evicted, the last ones first."""
        while pieces:
            piece = pieces.pop()
            piece.users -= 1
            if not piece.users:
                self._unused[piece] = None
                self.idle += piece.tokens

    def publish(self, mode: str, text: Pieces, held: list[CachedPiece]) -> None:
        """A request has a text of which it holds the first pieces; now it holds and shares all of them.

        held: is extended.
        """
        known = self._first.setdefault(mode, {})
        for place, (name, tokens) in enumerate(text):
            piece = known.get(name)
            if piece is None:
                piece = known[name] = CachedPiece(known, name)
                self._unused[piece] = None
            if place >= len(held):
                self.use([piece])
                held.append(piece)
            more = max(0, tokens - piece.tokens)
            piece.tokens += more
            self.tokens += more
            known = piece.after

    def evict(self, tokens: float) -> None:
        """Drop tokens without a user, or all there are."""
        while tokens > 0 and self._unused:
            piece = next(iter(self._unused))
            gone = min(math.ceil(tokens), piece.tokens)
            piece.tokens -= gone
            self.tokens -= gone
            self.idle -= gone
            tokens -= gone
            if not piece.tokens:
                del self._unused[piece], piece.among[piece.name]
