"""What a policy may know of a thought, and what it decides."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from fastslow.engine.sampling.repeats import Repeats

Ending = Literal["budget", "turn", "room", "loop", "confident", "caller"]
"""Why a thought was closed for the model."""
Ended = Literal["model", Ending]


class Thought(NamedTuple):
    """The thought that a text ends in, as far as a policy may know it."""

    spent: int  # tokens that began between the tags, over all thoughts of the answer
    made: int = 0  # tokens of the answer so far, tags and all that was put in included
    closing: int = 1  # tokens that closing it takes, at most
    repeats: Repeats = Repeats()  # of this thought


class ThinkingPolicy(Protocol):
    """Decides what a thought does next. A pure function of the thought."""

    @property
    def repeats(self) -> bool:
        """Whether it looks at them."""

    def judge(self, thought: Thought) -> Ending | None:
        """Why the thought is to be closed now; None = it is not."""

    def warns(self, thought: Thought, size: int) -> bool:
        """Whether a warning of `size` tokens is put in now."""

    def circles(self, repeats: Repeats) -> bool:
        """Whether an answer goes round in circles."""

    def lift(self, spent: int) -> float:
        """What is added to the closing tag's logit after `spent` tokens; 0 = nothing."""

    def lifts(self, spent: range) -> bool:
        """Whether `lift` is other than 0 anywhere in the range."""
