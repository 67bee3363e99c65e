"""One request on its way through a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastslow.tools.simulate.prefix_cache import CachedPiece
from fastslow.tools.simulate.trace import TracedRequest


@dataclass(slots=True, eq=False)
class AnswerState:
    """How far a request is.

    Attributes:
        request: of the trace.
        age: its place among all that came.
        rate, rows: tokens that it gets from a step, and rows that it runs in one.
        mode, prompt, goal, target: of the request: its mode, tokens of its prompt and (less a rounding error) of its
            answer, seconds of its target.
        queued: when it came to its replica.
        made: tokens of its answer, on average over steps: need not be whole.
        first, end: when its first token came, and its last one; None = not yet.
        cached: tokens of its prompt that were found in the cache at first.
        held: pieces of the replica's prefix cache that it holds.
        left: tokens of its text that are to be read.
        read_pages: pages that it holds alone while it reads.
        shared: tokens of its text in pages of the cache, while it writes.
    """

    request: TracedRequest
    age: int
    rate: float
    rows: float
    mode: str = ""
    prompt: int = 0
    goal: float = 0.0
    target: float | None = None
    queued: float = 0.0
    made: float = 0.0
    first: float | None = None
    end: float | None = None
    cached: int | None = None
    held: list[CachedPiece] = field(default_factory=list)
    left: int = 0
    read_pages: int = 0
    shared: int = 0

    def __post_init__(self) -> None:
        self.mode, self.prompt = self.request.mode, self.request.prompt_tokens
        self.goal = self.request.answer_tokens - 1e-9
        if self.request.latency_ms is not None:
            self.target = self.request.latency_ms / 1000

    @property
    def urgent(self) -> bool:
        """Whether it is quick and has a target."""
        return self.target is not None and not self.request.deep

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Its place in a queue: those with a target first, then by priority, then the oldest."""
        return self.target is None, self.request.priority, self.age

    @property
    def length(self) -> int:
        """Tokens of its prompt and of its answer so far."""
        return self.prompt + int(self.made + 1e-9)

    @property
    def root(self) -> tuple[str, str]:
        """Keys and values are shared between requests of one root."""
        return self.mode, self.request.memory_key

    @property
    def text(self) -> tuple[tuple[str, int], ...]:
        """The pieces of its whole text so far; the last one is its own."""
        own = self.length - self.request.shared_tokens
        return (*self.request.prefix, (self.request.id, own)) if own else self.request.prefix
