"""What a router sees of a request."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CHARACTERS = (
    65_536  # of a prompt that a router reads: what comes later hardly changes where it goes
)


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """One request, as far as it matters to where it goes.

    Attributes:
        id: names it, once, over all routers.
        mode: its name ("fast", "deep", "auto", or "base+..." for fields of the request's own).
        deep: whether it may take long: its mode thinks.
        prompt: the text that its prompt begins with, roles included, at most MOST_CHARACTERS.
        prompt_tokens: of the whole prompt; estimated where the text is not tokenised.
        max_tokens: the most that it may answer.
        latency_ms: its target, if it has one.
        memory_key: KV is shared only between requests of one key.
        replica: where it must go; "" = anywhere.
        avoid: replicas that just failed on it.
    """

    id: str
    mode: str
    deep: bool
    prompt: str
    prompt_tokens: int
    max_tokens: int
    latency_ms: float | None = None
    memory_key: str = ""
    replica: str = ""
    avoid: tuple[str, ...] = ()

    @property
    def urgent(self) -> bool:
        """A quick request with a target: what the guard protects."""
        return self.latency_ms is not None and not self.deep
