"""Which requests run this step, and how many rows of text each brings."""

from __future__ import annotations

import itertools
import time
from bisect import insort
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from fastslow.engine.core.latency_budget import PATIENCE, LatencyBudget
from fastslow.engine.core.request import Request
from fastslow.engine.kv.cache import KVCache


class ScheduledChunk(NamedTuple):
    """A request and how many of its pending tokens run this step."""

    request: Request
    chunk: int

    @property
    def ready(self) -> bool:
        """Whether the chunk ends the text: then the step gives a next token, and drafts may run."""
        return self.chunk == self.request.pending


class Scheduler:
    """Continuous batching, oldest first.

    Waiting requests start in the order in which they came, whatever they ask for. Of running ones,
    decoding goes before prefill. When pages run out, the youngest running request is preempted (its
    pages are freed, and it is computed again later), so the oldest always goes on. A preempted request
    keeps its age.

    Requests with a latency target go before all others, waiting or running, and the rows of others
    are cut to what the tightest target leaves. Of requests that were skipped PATIENCE times in a row,
    one a step runs before all others, however long that takes: none starves.

    Args:
        kv: whose pages are given out.
        prompt_rows: most rows of text per step, over all requests (chunked prefill).
        max_running: most requests in a step.
        latency_budget: how many rows fit into a step.
    """

    def __init__(
        self, kv: KVCache, prompt_rows: int, max_running: int, latency_budget: LatencyBudget
    ) -> None:
        self.latency_budget = latency_budget
        self._kv = kv
        self._prompt_rows = prompt_rows
        self._max_running = max_running
        self._arrivals = itertools.count()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first

    @property
    def busy(self) -> float:
        """Requests that run or wait, over the most that run at a time."""
        return (len(self.running) + len(self.waiting)) / self._max_running

    def add(self, request: Request) -> None:
        request.arrival = next(self._arrivals)
        if request.escape is not None and request.escape.successor is not None:
            request.escape.successor.arrival = request.arrival
        self.waiting.append(request)

    def add_first(self, request: Request) -> None:
        """Queue a request that replaces another one: it is as old as that, which has waited already."""
        self.waiting.appendleft(request)

    def next(self) -> list[ScheduledChunk]:
        """This step's work, with pages reserved for it."""
        work: dict[int, ScheduledChunk] = {}
        self.latency_budget.begin((*self.running, *self.waiting))
        for early in (True, False):
            self._serve(early, work)
            self._take_in(early, work)
        self._count(work)
        for request, _ in work.values():
            if request.kept is not None and request.computed >= request.kept.length:
                self._kv.stop_publishing(request.id)
        return [work[r.id] for r in self.running if r.id in work]

    def room(self, request: Request, nodes: int) -> int:
        """How many draft nodes the request may run, pages reserved; nobody is preempted for them."""
        nodes = min(nodes, request.max_len - len(request.tokens))
        if nodes <= 0:
            return 0
        if not self._kv.reserve(request.id, len(request.tokens) + nodes):
            nodes = min(nodes, self._kv.room(request.id) - len(request.tokens))
        return nodes

    def restart(self, request: Request, groups: int | None) -> None:
        """A mode switch: the text is computed again under other groups (exact)."""
        self._preempt(request)
        request.groups = groups
        request.kept = None

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

    def _serve(self, early: bool, work: dict[int, ScheduledChunk]) -> None:
        """Give rows to running requests: to those that go before others (`early`), or to the others."""
        for request in sorted(self.running, key=_running_rank):
            if request.id in work or _goes_first(request) is not early:
                continue
            left = self._prompt_rows - sum(chunk for _, chunk in work.values())
            chunk = self.latency_budget.share(request, min(request.chunk_limit, left))
            if chunk > 0 and request in self.running and self._make_room(request, chunk, work):
                work[request.id] = ScheduledChunk(request, chunk)
                self.latency_budget.take(request, chunk)

    def _take_in(self, early: bool, work: dict[int, ScheduledChunk]) -> None:
        """Start waiting requests, the oldest first."""
        while self.waiting and len(self.running) < self._max_running:
            left = self._prompt_rows - sum(chunk for _, chunk in work.values())
            request = min(self.waiting, key=_waiting_rank)
            if left <= 0 or (early and not _goes_first(request)):
                return
            chunk = self._admit(request, left)
            if not chunk:
                return
            self.waiting.remove(request)
            insort(self.running, request, key=_age)
            work[request.id] = ScheduledChunk(request, chunk)
            self.latency_budget.take(request, chunk)

    def _count(self, work: Mapping[int, ScheduledChunk]) -> None:
        """Count the steps for which requests were skipped because of a latency target."""
        waiting = [min(self.waiting, key=_age)] if self.waiting else []
        for request in (*self.running, *waiting):
            served = request.id in work or not self.latency_budget.limited
            request.skipped_steps = 0 if served else request.skipped_steps + 1

    def _make_room(self, request: Request, chunk: int, work: dict[int, ScheduledChunk]) -> bool:
        while not self._kv.reserve(request.id, request.computed + chunk):
            rank = self._kv.dp_rank(request.id)
            victim = next(r for r in reversed(self.running) if self._kv.dp_rank(r.id) == rank)
            work.pop(victim.id, None)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._kv.close(request.id)  # first: if it raises, the request is still among those that run
        self.running.remove(request)
        request.computed = 0
        request.tally.preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request, left: int) -> int:
        """Open the request's pages; returns the rows it may run, 0 if it must wait."""
        rows = self.latency_budget.share(request, left)
        if not rows:
            return 0
        most, end = len(request.tokens) - 1, len(request.tokens)
        if request.wants_prompt_logprobs:
            most = 0
        elif request.kept is not None:  # later rows run other groups than the prefix key says
            most = min(most, request.kept.length)
        cached = self._kv.open(request.id, request.tokens, request.root, most, request.mode)
        if request.kept is not None and cached < request.kept.length:
            end = request.kept.length
        chunk = min(end - cached, rows)
        # Pages for its whole text must be free, though only a chunk's are taken now: else older
        # requests would soon preempt it, again and again.
        whole = self._kv.pages_for(len(request.tokens)) - self._kv.pages_for(cached)
        if whole > self._kv.free_for(request.id) or not self._kv.reserve(
            request.id, cached + chunk
        ):
            self._kv.close(request.id)
            return 0
        if not request.shared:
            self._kv.stop_publishing(request.id)
        request.computed = cached
        request.tally.began = request.tally.began or time.monotonic()
        if len(request.tokens) == request.prompt_length:
            request.tally.cached = cached
        return chunk


def _goes_first(request: Request) -> bool:
    """Whether it has a latency target, or was skipped long enough."""
    return request.target is not None or request.skipped_steps >= PATIENCE


def _age(request: Request) -> int:
    return request.arrival


def _running_rank(request: Request) -> tuple[int, bool]:
    """Sort key: requests that were skipped long enough, then those with a latency target, then all
    others; among these, decoding before prefill. Equals stay in their order."""
    if request.skipped_steps >= PATIENCE:
        return -request.skipped_steps, False
    return int(request.target is None), request.pending > 1


def _waiting_rank(request: Request) -> tuple[int, int]:
    """The same, but of equals the oldest. How much a request has to read does not count: else many
    with little to read would keep out one with much."""
    return _running_rank(request)[0], request.arrival
