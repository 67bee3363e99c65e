"""The facts that the choice of a request's mode depends on, and the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """The facts that are known of a request before it runs."""

    text: str  # what is asked: the last turn of the user, or the whole prompt
    turns: int = 0  # messages before it, the system's not counted
    words: int = 0  # of the whole prompt, with all that was said before
    latency_ms: float | None = None  # the caller's target
    busy: float = 0.0  # requests in the engine / `max_running`; above 1 some wait


class ModeChoice(NamedTuple):
    """A preset's name, and why it was taken, in one line for people."""

    mode: str
    why: str


ModeRouter = Callable[[PromptFacts], str | ModeChoice]
"""Takes a mode for a request. It costs the caller's time, so it should be quick."""
