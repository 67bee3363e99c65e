"""One request on its way through a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastslow.tools.simulate.prefix_cache import CachedPiece
from fastslow.tools.simulate.trace import TracedRequest


@dataclass(slots=True, eq=False)
class AnswerState:
    """How far a request is.

    Attributes:
        request: of the trace.
        age: its place among all that came.
        rate, rows: tokens that it gets from a step, and rows that it runs in one.
        queued: when it came to its present replica.
        made: tokens of its answer that are there.
        first: when the first one was; None = not yet.
        started: when a replica began with it.
        cached: tokens of its prompt that were found in the cache of its first replica.
        held: pieces of the replica's prefix cache that it holds.
        left: tokens of its text that are to be read.
        read_pages: pages of its own that it holds while it reads.
        private: tokens that lie in pages of its own when it begins to decode.
        begun, ends: the steps of its batch between which it decodes.
        base: tokens that were there at `begun`.
        sent: how often it was sent to a replica.
        replica: where it was sent last.
    """

    request: TracedRequest
    age: int
    rate: float
    rows: float
    queued: float = 0.0
    made: int = 0
    first: float | None = None
    started: float | None = None
    cached: int | None = None
    held: list[CachedPiece] = field(default_factory=list)
    left: int = 0
    read_pages: int = 0
    private: int = 0
    begun: float = 0.0
    ends: float = 0.0
    base: int = 0
    sent: int = 0
    replica: str = ""

    @property
    def target(self) -> float | None:
        """Seconds."""
        ms = self.request.latency_ms
        return None if ms is None else ms / 1000

    @property
    def urgent(self) -> bool:
        """Whether the router's guard is for it."""
        return self.request.latency_ms is not None and not self.request.deep

    @property
    def length(self) -> int:
        """Tokens of its prompt and of its answer so far."""
        return self.request.prompt_tokens + self.made

    @property
    def root(self) -> tuple[str, str]:
        """Keys and values are shared between requests of one root."""
        return self.request.mode, self.request.memory_key

    @property
    def text(self) -> tuple[tuple[Any, int], ...]:
        """The pieces of its whole text so far; the last one is its own."""
        own = self.length - sum(tokens for _, tokens in self.request.prefix)
        if not own:
            return self.request.prefix
        return (*self.request.prefix, (self.request.id, own))

    @property
    def last_token_was_first(self) -> bool:
        """Whether it is over as soon as it has been read."""
        return self.made >= self.request.answer_tokens

    def shared(self, page: int) -> int:
        """Tokens of its text that lie in pages of the cache, once it has published its prefix."""
        if len(self.held) > len(
            self.request.prefix
        ):  # it was preempted, and its own text is cached
            own = self.held[-1]
            return (
                min(own.start + own.tokens, (own.start // page + own.pages) * page) // page * page
            )
        return sum(tokens for _, tokens in self.request.prefix) // page * page
