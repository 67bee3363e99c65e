"""The values that a request holds: its prompt, how it is drafted, shared and scheduled, and what is known of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.params import Mode, Speculation
from fastslow.engine.types import TARGET, Policy, Tree


@dataclass(frozen=True, slots=True)
class KVHistory:
    """The first `length` rows of a text were computed with these groups, whatever the request runs now."""

    groups: int | None
    length: int


class EncodedPrompt(NamedTuple):
    """A prompt that was checked, and what is known of its answer."""

    tokens: list[int]
    text: str | None = None  # None if token ids were given
    chat: bool = False  # made from messages
    opened: bool = False  # the answer begins inside a thought
    continues: bool = True  # the answer continues a text, the assistant's own where it is a chat
    tools: bool = False  # the chat offers tools, and the answer's text shows the marks of calls
    turn_spent: int = 0  # tokens of thought of the user's turn, so far
    prediction: tuple[int, ...] = ()  # tokens that the answer probably repeats

    def turn_left(self, mode: Mode) -> int | None:
        """Tokens of thought that are left of a mode's budget for a turn; None = it has none."""
        return None if mode.turn_budget is None else max(0, mode.turn_budget - self.turn_spent)


class Drafting(NamedTuple):
    """Settings that a part of an answer is drafted by."""

    speculation: Speculation
    policy: Policy
    own_drafter: str = ""  # the name of what the speculation means, where that is one drafter


@dataclass(slots=True)
class Sharing:
    """Sharing of a request's text and KV with later requests."""

    memory_key: str | None = None  # only those of the same key may
    rope_length: int = 0  # only those of the same rotary base, see `ModelConfig.rope_length`
    allowed: bool = True  # False: none may


@dataclass(slots=True)
class AnswerLog:
    """Record of an answer while it is generated."""

    sources: list[str] = field(default_factory=list)  # of its tokens, see `token_sources`
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was decided about it, for people
    trace: StepTrace | None = None  # of its steps


@dataclass(slots=True)
class Scheduling:
    """Scheduling of a request: its order, and its rows in a step."""

    priority: int = 0  # smaller goes first; the scheduler lowers it where a request has waited long
    latency_target: float | None = None  # seconds to the first token, and for each later one
    may_cut_draft: bool = True  # where a target would be missed
    may_cut_groups: bool = False
    arrival: int = -1  # its place in the order in which requests came
    skipped_steps: int = 0  # steps since it was last served


@dataclass(slots=True)
class Timing:
    """Timestamps in seconds of `time.monotonic`; 0.0 = not yet."""

    called: float = 0.0
    began: float = 0.0  # when the request first ran
    first_token: float = 0.0
    last_token: float = 0.0
    deadline: float | None = None  # it ends then, whether it runs or waits


@dataclass(slots=True)
class KnownAnswer:
    """The parts of an answer that no step has to find: tokens that its call brought, and what a probe found ahead.

    Attributes:
        answered: its first tokens, which its call brought.
        unread: those after them, which come once its answer was asked for.
        ahead: what the target said of its next tokens.
    """

    answered: tuple[int, ...] = ()
    unread: Sequence[int] = ()
    ahead: list[int] = field(default_factory=list)

    def draft(self, nodes: int) -> Tree:
        """Return what the target said of the next tokens, as a draft of at most so many nodes."""
        tokens = self.ahead[:nodes]
        return replace(Tree.chain(tokens), drafter_names=[TARGET] * len(tokens))

    def passed(self, tokens: list[int]) -> bool:
        """Advance past these tokens of the answer. Return True if the target had predicted some of them."""
        if not self.ahead:
            return False
        self.ahead = self.ahead[len(tokens) :] if self.ahead[: len(tokens)] == tokens else []
        return True
