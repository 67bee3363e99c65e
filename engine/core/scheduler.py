"""Which requests run this step, and how many rows of text each brings."""

from __future__ import annotations

import itertools
import time
from bisect import insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

from fastslow.engine.core.latency_budget import LEAST, PATIENCE, LatencyBudget
from fastslow.engine.core.request import Request
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.params import MOST_PRIORITY

OVERTAKEN = 8  # more urgent requests that start in a row before the oldest that waits
FIRST = -MOST_PRIORITY - 1  # before all of them
_age, _priority = attrgetter("arrival"), attrgetter("priority")


class ScheduledChunk(NamedTuple):
    """A request and how many of its pending tokens run this step."""

    request: Request
    chunk: int

    @property
    def ready(self) -> bool:
        """Whether the chunk ends the text: then the step gives a next token, and drafts may run."""
        return self.chunk == self.request.pending


class FairShares:
    """How many answers of each share run in a step, where requests of several shares run or wait.

    The step's places are dealt out: a share that wants few gets them, and the others get equal parts of what
    is left. None gets more than all others want together, unless its equal part of all places is more: so a
    share alone never makes steps much longer for others. Against a request only those count that are as
    urgent. With one share there is nothing to deal out.

    places: most requests in a step.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._parts: dict[tuple[int, str | None], int] = {}  # by priority and share
        self._turns: dict[int, int] = {}  # of requests that run
        self._running: defaultdict[str | None, Counter[int]]  # by share and priority
        self._starts = 0
        self._latest: dict[str | None, int] = {}  # start of each share
        self._next: dict[tuple[int, str | None], tuple[bool, int, int]] = {}  # what `next` has said

    @property
    def several(self) -> bool:
        return bool(self._parts)

    def begin(self, running: Sequence[Request], waiting: Iterable[Request]) -> None:
        """Deal out the places of a step."""
        self._parts, self._turns, self._running, self._next = {}, {}, defaultdict(Counter), {}
        every = (*running, *waiting)
        shares = {r.share for r in every}
        if len(shares) < 2:
            return
        newest = self._starts - 1  # before the share that started last, and after all others
        self._latest = {share: self._latest.get(share, newest) for share in shares}
        for priority in {r.priority for r in every}:
            wants = Counter(r.share for r in every if r.priority <= priority)
            left, equal = self._places, self._places // len(wants)
            for after, (share, want) in enumerate(sorted(wants.items(), key=itemgetter(1))):
                part = max(1, left // (len(wants) - after))
                left -= min(want, part)
                most = max(1, equal, wants.total() - want)
                self._parts[priority, share] = min(part, most)
        for request in sorted(running, key=_priority):
            self._count(request)

    def start(self, request: Request) -> None:
        """A request that waited runs from now on."""
        if self._parts:
            self._starts += 1
            self._latest[request.share] = self._starts
            self._count(request)

    def turn(self, request: Request) -> int:
        """How many answers of its share go before it; 0 where there is one share."""
        turn = self._turns.get(request.id)
        return self.next(request)[1] if turn is None else turn

    def waits(self, request: Request) -> bool:
        """Whether its share has its part of the step without it."""
        part = self._parts.get((request.priority, request.share))
        return part is not None and not _goes_first(request) and self.turn(request) >= part

    def next(self, request: Request) -> tuple[bool, int, int]:
        """Sort key of a request that waits: whether its share has its part, how many of its answers run, and a
        number that is larger the later it started one."""
        place = request.priority, request.share
        if place not in self._next:
            turn = self._before(request)
            beyond = turn >= self._parts.get(place, self._places)
            self._next[place] = beyond, turn, self._latest.get(request.share, 0)
        return self._next[place]

    def _before(self, request: Request) -> int:
        running = self._running[request.share].items()
        return sum(count for priority, count in running if priority <= request.priority)

    def _count(self, request: Request) -> None:
        self._turns[request.id] = self._before(request)
        self._running[request.share][request.priority] += 1
        self._next.clear()


class Scheduler:
    """Continuous batching, by priority (the smallest number first), then oldest first.

    Waiting requests start in that order, whatever they ask for. Of running ones, decoding goes before
    prefill, and prompts are read in that order, too, before those of less urgent requests that wait. When
    pages run out, of the least urgent running requests the youngest is preempted (its pages are freed,
    and it is computed again later), so the oldest of the most urgent requests always runs. A preempted
    request keeps its age.

    Of requests that are as urgent, those start first, and have their prompts read first, whose share has the
    fewest answers running; see `FairShares`. An answer beyond its share's part is not in the step, and keeps
    its pages; where a request of another share lacks a place or pages, it is preempted for that.

    Requests with a latency target go before all others, waiting or running, and the rows of others
    are cut to what the tightest target leaves. Of requests that were skipped PATIENCE times in a row,
    one a step runs before all others, however long that takes. Where OVERTAKEN requests in a row started
    before an older, less urgent one, the oldest that waits is the most urgent of all from then on. So
    none starves.

    Args:
        kv: whose pages are given out.
        prompt_rows: most rows of text in a step, over all requests (chunked prefill).
        max_running: most requests in a step.
        latency_budget: how many rows fit into a step.
    """

    def __init__(
        self, kv: KVCache, prompt_rows: int, max_running: int, latency_budget: LatencyBudget
    ) -> None:
        self.latency_budget = latency_budget
        self._kv = kv
        self._prompt_rows = prompt_rows
        self.max_running = max_running
        self._arrivals = itertools.count()
        self._overtakes = 0  # requests in a row that started before the oldest that waits
        self._shares = FairShares(max_running)
        self._blocked = False  # in this step none of those that wait can start any more
        self._left = 0  # rows that are left of this step's
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first

    @property
    def busy(self) -> float:
        """Requests that run or wait, over the most that run at a time."""
        return (len(self.running) + len(self.waiting)) / self.max_running

    def add(self, request: Request) -> None:
        request.arrival = next(self._arrivals)
        for successor in request.successors:
            successor.arrival = request.arrival
        self.waiting.append(request)

    def add_first(self, request: Request) -> None:
        """Queue a request that replaces another one: it is as old as that, which has waited already."""
        self.waiting.appendleft(request)

    def next(self) -> list[ScheduledChunk]:
        """This step's work, with pages reserved for it."""
        work: dict[int, ScheduledChunk] = {}
        self._blocked, self._left = False, self._prompt_rows
        self.latency_budget.begin((*self.running, *self.waiting))
        self._shares.begin(self.running, self.waiting)
        self._serve([r for r in self.running if _goes_first(r)], work)
        self._take_in(work, _goes_first)
        others = [r for r in self.running if r.id not in work and not _goes_first(r)]
        others = [r for r in others if not self._shares.waits(r)]
        self._serve([r for r in others if r.pending <= 1], work)
        reading = sorted((r for r in others if r.pending > 1), key=self._rank)
        for rank, alike in itertools.groupby(reading, key=self._rank):
            self._take_in(work, lambda r, than=rank: self._rank(r) < than)  # type: ignore[misc]
            self._serve(list(alike), work)
        self._take_in(work, lambda _: True)
        self._count(work)
        for request, _ in work.values():
            kept = request.kv_from_previous_mode
            if kept is not None and request.computed >= kept.length:
                self._kv.stop_publishing(request.id)
        return [work[r.id] for r in self.running if r.id in work]

    def room(self, request: Request, nodes: int) -> int:
        """How many draft nodes the request may run, pages reserved; nobody is preempted for them."""
        length = len(request.tokens) + request.rows_after(len(request.tokens))
        nodes = min(nodes, request.max_len - length)
        if nodes <= 0:
            return 0
        if not self._kv.reserve(request.id, length + nodes):
            nodes = min(nodes, self._kv.room(request.id) - length)
        return nodes

    def restart(self, request: Request, groups: int | None) -> None:
        """A mode switch: the text is computed again under other groups (exact)."""
        self._preempt(request)
        request.groups = groups
        request.kv_from_previous_mode = None

    def remove(self, request: Request) -> bool:
        """Forget a request, running or waiting; its pages are freed. False: it was neither."""
        if self._kv.holds(request.id):  # also where a step failed that was about to start it
            self._kv.close(request.id)
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return False
        return True

    def _serve(self, requests: Sequence[Request], work: dict[int, ScheduledChunk]) -> None:
        """Give rows to running requests, but for those that were preempted and let in again in this step."""
        for request in sorted((r for r in requests if r.id not in work), key=_running_rank):
            left = self._left
            if request.skipped_steps >= PATIENCE and not self.latency_budget.limited:
                # more urgent ones want some, too
                left = min(left, max(LEAST, self._prompt_rows // 4))
            chunk = self.latency_budget.share(request, min(request.chunk_limit, left))
            rows = chunk + request.rows_after(request.computed + chunk)
            if chunk > 0 and self._kv.holds(request.id) and self._make_room(request, rows, work):
                self._run(request, chunk, work)

    def _run(self, request: Request, chunk: int, work: dict[int, ScheduledChunk]) -> None:
        work[request.id] = ScheduledChunk(request, chunk)
        self._left -= chunk
        self.latency_budget.take(request, chunk)

    def _take_in(self, work: dict[int, ScheduledChunk], may: Callable[[Request], bool]) -> None:
        """Start waiting requests in their order, as long as they `may`."""
        while self.waiting and not self._blocked:
            if len(self.running) >= self.max_running and not self._shares.several:
                return
            oldest = min(self.waiting, key=_age)
            if self._overtakes >= OVERTAKEN:
                oldest.priority = FIRST
            request = min(self.waiting, key=self._waiting_rank)
            if self._left <= 0 or not may(request) or self._shares.waits(request):
                return
            rows, chunk = self.latency_budget.share(request, self._left), 0
            while rows and not chunk:
                chunk = self._admit(request, rows)
                if not chunk and not self._make_place(request, work):
                    break
            if not chunk:
                self._blocked = True
                return
            if request is oldest:
                self._overtakes = 0
            else:
                self._overtakes += request.priority < oldest.priority
            self.waiting.remove(request)
            insort(self.running, request, key=_age)
            self._shares.start(request)
            self._run(request, chunk, work)

    def _count(self, work: Mapping[int, ScheduledChunk]) -> None:
        """Count the steps in which requests were skipped for a latency target, or for more urgent prompts."""
        limited = self.latency_budget.limited
        contested = limited or len({r.priority for r in self.running}) > 1
        for request in self.running:
            served = request.id in work or not contested or self._shares.waits(request)
            request.skipped_steps = 0 if served else request.skipped_steps + 1
        if self.waiting:
            oldest = min(self.waiting, key=_age)
            oldest.skipped_steps = oldest.skipped_steps + 1 if limited else 0

    def _make_room(self, request: Request, rows: int, work: dict[int, ScheduledChunk]) -> bool:
        while not self._kv.reserve(request.id, request.computed + rows):
            rank = self._kv.dp_rank(request.id)
            beside = (r for r in self.running if self._kv.dp_rank(r.id) == rank)
            victim = max(beside, key=self._order)
            if (lost := work.pop(victim.id, None)) is not None:
                self._left += lost.chunk
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _make_place(self, request: Request, work: Mapping[int, ScheduledChunk]) -> bool:
        """Preempt an answer beyond its share's part for a request that waits. False: there is none."""
        beyond = [r for r in self.running if r.id not in work and self._shares.waits(r)]
        beyond = [r for r in beyond if r.priority >= request.priority]
        if beyond:
            self._preempt(max(beyond, key=self._order))
        return bool(beyond)

    def _preempt(self, request: Request) -> None:
        self._kv.close(request.id)  # first: if it raises, the request is still among those that run
        self.running.remove(request)
        request.computed = 0
        request.spec_stats.preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request, rows: int) -> int:
        """Open the request's pages; returns how many of these rows it may run, 0 if it must wait."""
        if len(self.running) >= self.max_running:
            return 0
        tokens, kept = request.tokens, request.kv_from_previous_mode
        most, end = len(tokens) - 1, len(tokens)
        if request.wants_prompt_logprobs:
            most = 0
        elif request.wants_answered_logprobs:
            most = min(most, request.prompt_length - 1)
        elif kept is not None:  # later rows run other groups than the prefix key says
            most = min(most, kept.length)
        root, for_all = request.root, request.shared_root
        cached = self._kv.open(request.id, tokens, root, most, request.mode, for_all)
        if kept is not None and cached < kept.length:
            end = kept.length
        chunk = min(end - cached, rows)
        # Pages for its whole text must be free, though only a chunk's are taken now: else older
        # requests would soon preempt it, again and again.
        whole = len(tokens) + request.rows_after(len(tokens))
        pages = self._kv.pages_for(whole) - self._kv.pages_for(cached)
        fits = pages <= self._kv.free_for(request.id)
        rows = chunk + request.rows_after(cached + chunk)
        if not fits or not self._kv.reserve(request.id, cached + rows):
            self._kv.close(request.id)
            return 0
        if not request.shared:
            self._kv.stop_publishing(request.id)
        request.computed = cached
        request.spec_stats.began = request.spec_stats.began or time.monotonic()
        if request.next_answered is not None or len(request.tokens) == request.prompt_length:
            request.spec_stats.cached = min(cached, request.prompt_length)
        return chunk

    def _rank(self, request: Request) -> tuple[int, int]:
        """Sort key: the most urgent, then those of shares with the fewest answers before them."""
        return request.priority, self._shares.turn(request)

    def _order(self, request: Request) -> tuple[int, int, int]:
        """The same, and then the oldest. The last one gives way."""
        return *self._rank(request), request.arrival

    def _waiting_rank(self, request: Request) -> tuple[bool, int, int, int, int, int]:
        """As `_running_rank`, but of equals the oldest of the share that started least lately."""
        first, _, priority = _running_rank(request)
        beyond, turn, latest = self._shares.next(request)
        beyond = beyond and not _goes_first(request)
        return beyond, first, priority, turn, latest, request.arrival


def _goes_first(request: Request) -> bool:
    """Whether it has a latency target, or was skipped long enough."""
    return request.latency_target is not None or request.skipped_steps >= PATIENCE


def _running_rank(request: Request) -> tuple[int, bool, int]:
    """Sort key: those that were skipped long enough, those with a latency target, all others; among these,
    decoding before prefill, then the most urgent. Equals stay in their order."""
    if request.skipped_steps >= PATIENCE:
        return -request.skipped_steps, False, 0
    return int(request.latency_target is None), request.pending > 1, request.priority
