"""Makes the masks of grammars beside the steps, and keeps slow ones out of them."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from weakref import WeakKeyDictionary, WeakSet

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.core.step.target_probs import drafted_runs
from fastslow.engine.host.machine import cores, stand_back
from fastslow.engine.sampling.grammars.grammar import Grammar
from fastslow.engine.types import AcceptResult, Tree

MASK_THREADS = min(4, cores())
PATIENCE = 0.005  # seconds after a forward
LONGEST_WAIT = 0.05  # seconds of a step that has nothing to run
NONE_LATE = nullcontext[Collection[Request]](())


class MaskMaker:
    """Makes the masks of a step's rows in its threads; each request's grammar keeps them.

    A step waits PATIENCE for them after its forward. A request whose first mask is not ready then is left out:
    it runs again, with the same text, in a later step. Whether it is left out depends on no token that was
    drafted in the step by chance. Where a mask takes longer than a step waits, the grammar follows the request's
    next token, and makes the mask after it, beside the steps of others; then the request runs again. So it is where
    the masks of a share take longer together in its part of the threads, for the slowest of them.
    """

    def __init__(self) -> None:
        self._lanes = _Lanes(MASK_THREADS, "fastslow-masks")
        self._slow_lane = _Lanes(1, "fastslow-late-masks", stand_back)
        self._each = MASK_THREADS  # threads of a share in this step
        self._long = set[Request]()  # whose masks this step does not wait for
        self._late: dict[Request, Future[None]] = {}
        self._again = WeakSet[Request]()  # they were late, and run again without a draft
        self._followed = WeakKeyDictionary[Request, int]()  # the length of its text then
        self._forward = 0.0  # seconds of the latest ones
        self._patience = PATIENCE

    def slow(self, request: Request) -> bool:
        """True where no step should wait for a request's masks, and nothing drafts for it."""
        if request.grammar is None:
            return False
        return request in self._again or request.grammar.walks_slowly or request in self._long

    def _slowest(self, requests: Sequence[tuple[Request, Grammar]]) -> set[Request]:
        """Requests whose masks exceed the time that a step has for their share."""
        spent, found = defaultdict[str | None, float](float), set[Request]()
        timed = [(grammar.seconds, request) for request, grammar in requests]
        most = self._forward + self._patience
        for seconds, request in sorted(timed, key=itemgetter(0)):
            spent[request.share] += seconds
            if seconds > most or spent[request.share] > self._each * most:
                found.add(request)
        return found

    def runnable(self, work: list[ScheduledChunk]) -> list[ScheduledChunk]:
        """A step's work without requests whose next mask is still being made. Where nothing else is left, it
        waits for one of them."""
        self._patience = PATIENCE if len(work) > 1 else LONGEST_WAIT
        ready = [
            (item.request, item.request.grammar)
            for item in work
            if item.request.grammar is not None and item.ready and item.request not in self._late
        ]
        if not ready and not self._late:
            self._long = set()
            return work
        self._each = max(1, MASK_THREADS // max(1, len({item.request.share for item in work})))
        self._long = self._slowest(ready)
        for request, grammar in ready:
            made = grammar.knows(request.tokens)
            if request in self._long and request not in self._again and not made:
                self._late[request] = self._slow_lane.submit(_Job(request, Tree()))
        if not self._late:
            return work
        if work and not self._without_late(work):
            wait(self._late.values(), LONGEST_WAIT, FIRST_COMPLETED)
        return self._without_late(work)

    def _without_late(self, work: Sequence[ScheduledChunk]) -> list[ScheduledChunk]:
        made = [request for request, job in self._late.items() if job.done()]
        self._again.update(made)
        for request in made:
            del self._late[request]
        return [item for item in work if item.request not in self._late]

    def beside(
        self, ready: Sequence[Request], trees: Sequence[Tree]
    ) -> AbstractContextManager[Collection[Request]]:
        """Make them while a block runs. The block must not ask these grammars. At its end the masks are made,
        but for those of the requests that it gives."""
        each = zip(ready, trees, strict=True)
        jobs = [_Job(request, tree) for request, tree in each if request.grammar is not None]
        return self._making(jobs) if jobs else NONE_LATE

    @contextmanager
    def _making(self, jobs: Sequence[_Job]) -> Iterator[Collection[Request]]:
        late = set[Request]()
        made = [self._lanes.submit(job, self._each) for job in jobs]
        self._again.difference_update(job.request for job in jobs)
        began = time.perf_counter()
        try:
            yield late
        finally:
            seconds = time.perf_counter() - began  # other masks may slow it down
            self._forward = min(seconds, 1.05 * self._forward) if self._forward else seconds
            wait(made, self._patience)
            for job in (job for job in jobs if not job.over.done()):
                job.given_up = True
                if job.first_made and job.tree.probs is not None:
                    wait([job.over])  # a sampled token must not decide whether its step counts
                else:
                    self._late[job.request] = job.over
                    late.add(job.request)

    def unfollowed(
        self, ready: Sequence[Request], trees: Sequence[Tree], result: AcceptResult
    ) -> Collection[Request]:
        """Requests with slow masks whose grammar has not followed their next token yet: it does so now, and
        the step does not count for them."""
        late: set[Request] = set()
        for request, tree, tokens in zip(ready, trees, result.tokens, strict=True):
            grammar = request.grammar
            sampled = tree.probs is not None  # its time must not decide whether its step counts
            if grammar is None or sampled or request.error:
                continue
            beside = self._patience == PATIENCE  # others are, whom it would hold up
            if request not in self._long and not (beside and grammar.walks_slowly):
                continue
            if not grammar.follows(tokens) and self._followed.get(request) != len(request.tokens):
                self._followed[request] = len(request.tokens)
                self._late[request] = self._slow_lane.submit(_Job(request, Tree.chain(tokens)))
                late.add(request)
        return late


@dataclass(eq=False, slots=True)
class _Job:
    """Makes the masks of one request's rows. given_up: only the first mask is made any more."""

    request: Request
    tree: Tree
    over: Future[None] = field(default_factory=Future)
    first_made: bool = False
    given_up: bool = False

    def run(self) -> None:
        if self.request.done or self.request.grammar is None:
            return
        for run in drafted_runs(self.tree):
            if run and self.given_up:
                self.request.grammar.leave_out(run)
                continue
            with suppress(Exception):  # raised again where the row is judged
                self.request.grammar.at(self.request.tokens, run)
            self.first_made = True


class _Lanes:
    """Threads that make masks of all shares in turns. begin: called in each."""

    def __init__(self, threads: int, name: str, begin: Callable[[], None] | None = None) -> None:
        self._threads = ThreadPoolExecutor(threads, name, begin)
        self._lock = threading.Lock()
        self._queues = defaultdict[str | None, deque[_Job]](deque)
        self._busy = Counter[str | None]()

    def submit(self, job: _Job, most: int = 1) -> Future[None]:
        """Have it run, in one of at most so many threads of its share."""
        share = job.request.share
        with self._lock:
            self._queues[share].append(job)
            if self._busy[share] < most:
                self._busy[share] += 1
                self._threads.submit(self._serve, share)
        return job.over

    def _serve(self, share: str | None) -> None:
        """Run one job of a share; its next one comes after those of others."""
        with self._lock:
            job = self._queues[share].popleft() if self._queues[share] else None
            if job is None:
                self._busy[share] -= 1
                if not self._busy[share]:
                    del self._busy[share], self._queues[share]
                return
        try:
            job.run()
        finally:
            job.over.set_result(None)
            self._threads.submit(self._serve, share)
