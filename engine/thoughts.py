"""What a policy may know of a thought, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

Ending = Literal["budget", "loop", "settled", "caller"]
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
        """What is added to the closing tag's logit after `spent` tokens; 0 = nothing."""

    def lifts(self, spent: range) -> bool:
        """Whether `lift` is other than 0 anywhere in the range."""


class CutThought:
    """The policy that held before, and beside it: a thought ends after `most` tokens, counted over all
    thoughts of the answer, because its caller said so."""

    def __init__(self, policy: ThinkingPolicy | None, most: int) -> None:
        self._policy = policy
        self._most = most
        self.reads = 0 if policy is None else policy.reads

    def judge(self, thought: Thought) -> Ending | None:
        if thought.spent >= self._most:
            return "caller"
        return None if self._policy is None else self._policy.judge(thought)

    def lift(self, spent: int) -> float:
        return 0.0 if self._policy is None else self._policy.lift(spent)

    def lifts(self, spent: range) -> bool:
        return self._policy is not None and self._policy.lifts(spent)
