"""Which requests run this step, and how many rows of text each brings."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.request import Request
from fastslow.engine.types import Load


class Work(NamedTuple):
    """A request and how many of its pending tokens run this step."""

    request: Request
    chunk: int

    @property
    def ready(self) -> bool:
        """The rows reach the end of the text, so a next token comes out, and drafts may hang on."""
        return self.chunk == self.request.pending


class Scheduler:
    """Continuous batching, oldest first.

    Requests that decode go before prompts that are read. When pages run out, the youngest running
    request gives all of its own back and is computed again later: the oldest always gets on, so
    everything that fits alone ends.

    Args:
        kv: whose pages are handed out.
        prompt_rows: most rows of text per step, all requests together (chunked prefill).
        max_running: most requests in a step.
    """

    def __init__(self, kv: KVCache, prompt_rows: int, max_running: int) -> None:
        self._kv = kv
        self._prompt_rows = prompt_rows
        self._max_running = max_running
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first

    @property
    def load(self) -> Load:
        return Load(len(self.running), len(self.waiting))

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def next(self) -> list[Work]:
        """This step's work, with pages reserved for it."""
        work: dict[int, Work] = {}
        left = self._prompt_rows
        by_phase = sorted(self.running, key=lambda r: r.pending > 1)  # stable: oldest first
        for request in by_phase:
            chunk = min(request.pending, left)
            if chunk > 0 and request in self.running and self._make_room(request, chunk, work):
                work[request.id] = Work(request, chunk)
                left -= chunk
        while self.waiting and left > 0 and len(self.running) < self._max_running:
            chunk = self._admit(self.waiting[0], left)
            if not chunk:
                break
            request = self.waiting.popleft()
            self.running.append(request)
            work[request.id] = Work(request, chunk)
            left -= chunk
        return [work[r.id] for r in self.running if r.id in work]

    def room(self, request: Request, nodes: int) -> int:
        """How many draft nodes the request may run, pages reserved; nobody is preempted for them."""
        nodes = min(nodes, request.reach - len(request.tokens))
        if nodes <= 0:
            return 0
        if not self._kv.reserve(request.id, len(request.tokens) + nodes):
            nodes = min(nodes, self._kv.room(request.id) - len(request.tokens))
        return nodes

    def restart(self, request: Request, groups: int | None, root: Hashable) -> None:
        """A mode switch: the text is computed again under other groups (exact)."""
        self._preempt(request)
        request.groups = groups
        request.root = root

    def remove(self, request: Request) -> None:
        """Forget a request, running or waiting; its pages come back."""
        if request in self.running:
            self.running.remove(request)
            self._kv.close(request.id)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _make_room(self, request: Request, chunk: int, work: dict[int, Work]) -> bool:
        while not self._kv.reserve(request.id, request.computed + chunk):
            home = self._kv.home(request.id)
            victim = next(r for r in reversed(self.running) if self._kv.home(r.id) == home)
            work.pop(victim.id, None)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._kv.close(request.id)
        request.computed = 0
        request.tally.preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request, left: int) -> int:
        """Open the request's pages; returns the rows it may run, 0 if it must wait."""
        most = 0 if request.wants_prompt_logprobs else len(request.tokens) - 1
        cached = self._kv.open(request.id, request.tokens, request.root, most)
        chunk = min(len(request.tokens) - cached, left)
        # Pages for all of its text must be free, though only a chunk's are taken now: else it would
        # soon be preempted by older requests and read again and again.
        whole = self._kv.pages_for(len(request.tokens)) - self._kv.pages_for(cached)
        if whole > self._kv.free_for(request.id) or not self._kv.reserve(
            request.id, cached + chunk
        ):
            self._kv.close(request.id)
            return 0
        request.computed = cached
        if len(request.tokens) == request.prompt_length:
            request.tally.cached = cached
        return chunk
