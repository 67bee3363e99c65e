"""What a policy may know of a thought, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

Ending = Literal["budget", "loop", "settled"]
"""Why a thought was closed for the model."""


class Thought(NamedTuple):
    """The thought that a text ends in, as far as a policy may know it."""

    spent: int  # tokens that began between the tags, over all thoughts of the answer
    recent: Sequence[int] = ()  # the latest of this thought, at most as many as the policy reads
    line: str = ""  # the line that its last token ended, "" inside a line
    said: int = 0  # how often this thought has said that line by now


class ThinkingPolicy(Protocol):
    """Decides when a thought has to end. A pure function of the thought."""

    reads: int  # latest tokens that it wants to see; 0 = neither tokens nor lines

    def judge(self, thought: Thought) -> Ending | None:
        """Why the thought is to be closed now; None = it may go on."""

    def lift(self, spent: int) -> float:
        """What is added to the closing tag's logit after so many tokens; 0 = nothing."""

    def lifts(self, spent: range) -> bool:
        """Whether `lift` is other than 0 anywhere in the range."""
