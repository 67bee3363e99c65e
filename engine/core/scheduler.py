"""Scheduler of a step: it picks the requests that run, and the rows of text that each brings."""

from __future__ import annotations

import itertools
import time
from bisect import insort
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

from fastslow.engine.core.latency_budget import LEAST, PATIENCE, LatencyBudget
from fastslow.engine.core.request import Request
from fastslow.engine.core.step_budget import StepBudget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.params import MOST_PRIORITY

OVERTAKEN = 8  # more urgent requests that start in a row before the oldest that waits
FIRST = -MOST_PRIORITY - 1  # before all of them
_age = attrgetter("scheduling.arrival")


class ScheduledChunk(NamedTuple):
    """A request and how many of its pending tokens run this step."""

    request: Request
    chunk: int

    @property
    def ready(self) -> bool:
        """True where the chunk ends the text: then the step gives a next token, and drafts may run."""
        return self.chunk == self.request.pending


class FairShares:
    """Division of a step's answers among shares, where requests of several shares run or wait.

    The step's places are dealt out: a share that wants few gets them, and the others get equal parts of what
    is left. None gets more than all others want together, unless its equal part of all places is more, and none
    more than `StepBudget.beside` has: so a share alone never makes steps much longer for others, or for one that was
    there lately. With one share there is nothing to deal out. Priorities and targets count within a share.

    places: most requests in a step. `parts`: of the shares, none where there is one share.
    """

    def __init__(self, places: int, budget: StepBudget) -> None:
        self._places, self._budget = places, budget
        self.parts: dict[str | None, int] = {}
        self._turns: dict[int, int] = {}  # of requests that run
        self._running: defaultdict[str | None, Counter[tuple[bool, int]]]  # by share and urgency
        self._starts = 0
        self._latest: dict[str | None, int] = {}  # start of each share

    def begin(self, running: Sequence[Request], waiting: Iterable[Request]) -> None:
        """Deal out the places of a step."""
        self.parts, self._turns, self._running = {}, {}, defaultdict(Counter)
        wants, masks = self._budget.there, defaultdict[str | None, float](float)
        if not wants or (len(wants) < 2 and self._budget.alone):
            return
        for request in (*running, *waiting):
            masks[request.share] += request.mask_seconds
        newest = self._starts - 1  # before the share that started last, and after all others
        self._latest = {share: self._latest.get(share, newest) for share in wants}
        left, equal = self._places, self._places // len(wants)
        for after, (share, want) in enumerate(sorted(wants.items(), key=itemgetter(1))):
            part = max(1, left // (len(wants) - after))
            left -= min(want, part)
            others = max(1, wants.total() - want)
            each = masks[share] / want
            beside = 1 if want == 1 else self._budget.beside(min(others, self._places), each)
            self.parts[share] = min(part, max(equal, others), beside)
        for request in sorted(running, key=_urgency):
            self._count(request)

    def start(self, request: Request) -> None:
        """A request that waited runs from now on."""
        if self.parts:
            self._starts += 1
            self._latest[request.share] = self._starts
            self._count(request)

    def turn(self, request: Request) -> int:
        """Count the answers of its share that go before it; 0 where there is one share."""
        turn = self._turns.get(request.id)
        return self._before(request) if turn is None else turn

    def waits(self, request: Request) -> bool:
        """Tell whether its share has its part of the step without it."""
        return bool(self.parts) and self.turn(request) >= self.parts[request.share]

    def within(self, requests: Iterable[Request]) -> list[Request]:
        """Return those of them that are in the step: the others wait."""
        return [r for r in requests if not self.waits(r)] if self.parts else [*requests]

    def latest(self, request: Request) -> int:
        """A number that is larger the later its share started an answer."""
        return self._latest.get(request.share, 0)

    def _before(self, request: Request) -> int:
        running, own = self._running[request.share].items(), _urgency(request)
        return sum([count for urgency, count in running if urgency <= own])

    def _count(self, request: Request) -> None:
        self._turns[request.id] = self._before(request)
        self._running[request.share][_urgency(request)] += 1


class Scheduler:
    """Continuous batching, by priority (the smallest number first), then oldest first.

    Waiting requests start in that order, whatever they ask for. Of running ones, decoding goes before
    prefill, and prompts are read in that order, too, before those of less urgent requests that wait. When
    pages run out, of the least urgent running requests the youngest is preempted (its pages are freed,
    and it is computed again later), so the oldest of the most urgent requests always runs. A preempted
    request keeps its age.

    Where there are several shares, those start first, and have their prompts read first, whose share has the
    fewest answers running; see `FairShares`. All that is said here of priorities and targets holds within a share.
    An answer beyond its share's part is not in the step, and keeps its pages; where a request of another share lacks
    a place or pages, it is preempted for that. So does one whose probe is put off; see `StepBudget`.

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
        budget: what each share may take of it.
    """

    def __init__(
        self,
        kv: KVCache,
        prompt_rows: int,
        max_running: int,
        latency_budget: LatencyBudget,
        budget: StepBudget,
    ) -> None:
        self.latency_budget = latency_budget
        self.budget = budget
        self._kv = kv
        self._prompt_rows = prompt_rows
        self.max_running = max_running
        self._arrivals = itertools.count()
        self._overtakes = 0  # requests in a row that started before the oldest that waits
        self._shares = FairShares(max_running, budget)
        self._blocked = False  # in this step none of those that wait can start any more
        self._full = set[str | None]()  # shares of which none can start, for the time that it takes
        self._left = 0  # rows that are left of this step's
        self._put_off = set[Request]()  # whose probes run in a later step
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first

    @property
    def busy(self) -> float:
        """Requests that run or wait, over the most that run at a time."""
        return (len(self.running) + len(self.waiting)) / self.max_running

    def add(self, request: Request) -> None:
        request.scheduling.arrival = next(self._arrivals)
        for successor in request.successors:
            successor.scheduling.arrival = request.scheduling.arrival
        self.waiting.append(request)

    def add_first(self, request: Request) -> None:
        """Queue a request that replaces another one: it is as old as that, which has waited already."""
        self.waiting.appendleft(request)

    def next(self) -> list[ScheduledChunk]:
        """This step's work, with pages reserved for it."""
        work: dict[int, ScheduledChunk] = {}
        self._blocked, self._left = False, self._prompt_rows
        self._put_off.clear()
        self._full.clear()
        self.latency_budget.begin((*self.running, *self.waiting))
        self.budget.begin((*self.running, *self.waiting))
        self._shares.begin(self.running, self.waiting)
        running = self._shares.within(self.running)
        self.budget.place(running, self._shares.within(self.waiting))
        self._serve(filter(_goes_first, running), work)
        self._take_in(work, _goes_first)
        others: tuple[list[Request], list[Request]] = [], []  # those that decode, and that read
        for request in self._shares.within(self.running):
            if request.id not in work and not _goes_first(request):
                others[request.pending > 1].append(request)
        self._serve(others[0], work)
        others[1].sort(key=self._rank)
        for rank, alike in itertools.groupby(others[1], key=self._rank):
            self._take_in(work, lambda r, than=rank: self._rank(r) < than)  # type: ignore[misc]
            self._serve(alike, work)
        self._take_in(work, lambda _: True)
        self._count(work)
        for request, _ in work.values():
            if (kept := request.kept) is not None and request.computed >= kept.length:
                self._kv.stop_publishing(request.id)
        return [work[r.id] for r in self.running if r.id in work]

    def room(self, request: Request, nodes: int) -> int:
        """Return how many draft nodes the request may run, pages reserved; nobody is preempted for them."""
        if nodes <= 0:
            return 0
        probed = request.rows_after(len(request.tokens))
        length = len(request.tokens) + probed
        nodes = min(nodes, request.max_len - length, self._kv.unfolded - 1 - probed)
        if nodes > 0 and not self._kv.reserve(request.id, length + nodes):
            nodes = min(nodes, self._kv.room(request.id) - length)
        return max(nodes, 0)

    def restart(self, request: Request, groups: int | None) -> None:
        """A mode switch: the text is computed again under other groups (exact)."""
        self._preempt(request)
        request.groups = groups

    def remove(self, request: Request) -> bool:
        """Forget a request, running or waiting; its pages are freed. False: it was neither."""
        if request.id in self._kv.requests:  # also where a step failed that was about to start it
            self._kv.close(request.id)
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return False
        return True

    def _serve(self, requests: Iterable[Request], work: dict[int, ScheduledChunk]) -> None:
        """Give rows to running requests, but for those that were preempted and let in again in this step."""
        for request in sorted(requests, key=_running_rank):
            if request.id in work:
                continue
            left = self._left
            if request.scheduling.skipped_steps >= PATIENCE and not self.latency_budget.limited:
                # more urgent ones want some, too
                left = min(left, max(LEAST, self._prompt_rows // 4))
            chunk = self.latency_budget.share(request, min(request.chunk_limit, left))
            if chunk > 1:
                chunk = self.budget.rows(request, chunk, self._left)
            asked = request.rows_after(request.computed + chunk)
            if asked and not self.budget.may_probe(request, len(self.running)):
                self._put_off.add(request)
                chunk, asked = chunk - 1, 0
            held = chunk > 0 and request.id in self._kv.requests
            if held and self._make_room(request, chunk + asked, work):
                self._run(request, chunk, work)

    def _run(self, request: Request, chunk: int, work: dict[int, ScheduledChunk]) -> None:
        if request.pending > 1:
            self.budget.read(request, chunk)
        work[request.id] = ScheduledChunk(request, chunk)
        self._left -= chunk
        self.latency_budget.take(request, chunk)

    def _take_in(self, work: dict[int, ScheduledChunk], may: Callable[[Request], bool]) -> None:
        """Start waiting requests in their order, as long as they `may`."""
        while self.waiting and not self._blocked:
            if len(self.running) >= self.max_running and not self._shares.parts:
                return
            oldest = min(self.waiting, key=_age)
            if self._overtakes >= OVERTAKEN:
                oldest.scheduling.priority = FIRST
            able = [r for r in self.waiting if r.share not in self._full]
            request = min(able, key=self._waiting_rank, default=oldest)
            if not able or self._left <= 0 or not may(request) or self._shares.waits(request):
                return
            rows, chunk = self.latency_budget.share(request, min(self._left, request.pending)), 0
            rows = self.budget.rows(request, rows, self._left)
            if not rows:
                self._full.add(request.share)
                continue
            while not chunk:
                chunk = self._open(request, rows)
                if not chunk and not self._make_place(work):
                    break
            if not chunk:
                self._blocked = True
                return
            over = request.scheduling.priority < oldest.scheduling.priority
            self._overtakes = 0 if request is oldest else self._overtakes + over
            self.waiting.remove(request)
            insort(self.running, request, key=_age)
            self._shares.start(request)
            self._run(request, chunk, work)

    def _count(self, served: Collection[int]) -> None:
        """Count the steps in which requests that were not `served` waited for a target, or for more urgent prompts."""
        limited = self.latency_budget.limited
        contested = limited or len({r.scheduling.priority for r in self.running}) > 1
        for request in self.running:
            skipped = contested and request.id not in served and request not in self._put_off
            skipped = skipped and not self._shares.waits(request)
            own = request.scheduling
            own.skipped_steps = own.skipped_steps + 1 if skipped else 0
        if self.waiting:
            oldest = min(self.waiting, key=_age).scheduling
            oldest.skipped_steps = oldest.skipped_steps + 1 if limited else 0

    def _make_room(self, request: Request, rows: int, work: dict[int, ScheduledChunk]) -> bool:
        while not self._kv.reserve(request.id, request.computed + rows):
            rank = self._kv.dp_rank(request.id)
            beside = (r for r in self.running if self._kv.dp_rank(r.id) == rank)
            victim = max(beside, key=self._order)
            if (lost := work.pop(victim.id, None)) is not None:
                self._left += lost.chunk
                if victim.pending > 1:
                    self.budget.read(victim, -lost.chunk)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _make_place(self, work: Collection[int]) -> bool:
        """Preempt an answer beyond its share's part for a request that waits. False: there is none."""
        beyond = [r for r in self.running if r.id not in work and self._shares.waits(r)]
        if beyond:
            self._preempt(max(beyond, key=self._order))
        return bool(beyond)

    def _preempt(self, request: Request) -> None:
        self._kv.close(request.id)  # first: if it raises, the request is still among those that run
        self.running.remove(request)
        request.computed = 0
        request.spec_stats.preemptions += 1
        self.waiting.appendleft(request)

    def _open(self, request: Request, rows: int) -> int:
        """Open the request's pages; returns how many of these rows it may run, 0 if it must wait."""
        if len(self.running) >= self.max_running:
            return 0
        tokens, kept = request.tokens, request.kept
        most, end = len(tokens) - 1, len(tokens)
        if request.wants_prompt_logprobs:
            most = 0
        elif request.wants_answered_logprobs:
            most = min(most, request.prompt_length - 1)
        elif kept is not None:  # later rows run other groups than the prefix key says
            most = min(most, kept.length)
        root, for_all = request.root, request.shared_root
        cached = self._kv.open(request.id, tokens, root, most, request.mode.name, for_all)
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
        request.timing.began = request.timing.began or time.monotonic()
        if request.next_answered is not None or len(request.tokens) == request.prompt_length:
            request.spec_stats.cached = min(cached, request.prompt_length)
        return chunk

    def _rank(self, request: Request) -> tuple[int, int]:
        """Sort key: those of shares with the fewest answers before them, then the most urgent."""
        return self._shares.turn(request), request.scheduling.priority

    def _order(self, request: Request) -> tuple[int, int, int]:
        """The same, and then the oldest. The last one gives way."""
        return *self._rank(request), request.scheduling.arrival

    def _waiting_rank(self, request: Request) -> tuple[int, ...]:
        """Sort key: those whose share has not its part yet, those that were skipped long enough; among these as
        `_rank`, those with a latency target first; of equals the oldest of the share that started least lately."""
        beyond, turn = self._shares.waits(request), self._shares.turn(request)
        own, latest = request.scheduling, self._shares.latest(request)
        skipped = own.skipped_steps if own.skipped_steps >= PATIENCE else 0
        return beyond, -skipped, turn, *_urgency(request), latest, own.arrival


def _goes_first(request: Request) -> bool:
    """Tell whether it has a latency target, or was skipped long enough."""
    own = request.scheduling
    return own.latency_target is not None or own.skipped_steps >= PATIENCE


def _urgency(request: Request) -> tuple[bool, int]:
    """Sort key of the requests of a share: those with a latency target, then the most urgent."""
    return request.scheduling.latency_target is None, request.scheduling.priority


def _running_rank(request: Request) -> tuple[int, bool, int, int]:
    """Sort key: those that were skipped long enough, those with a latency target, all others; among these,
    decoding before prefill, then the most urgent, and who has asked least. Equals stay in their order."""
    own = request.scheduling
    if own.skipped_steps >= PATIENCE:
        return -own.skipped_steps, False, 0, 0
    late, reads = own.latency_target is None, request.pending > 1
    return int(late), reads, own.priority, request.spec_stats.probe_rows
