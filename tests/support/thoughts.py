"""Thinking budgets for tests: what a request may be given, and what its answer must then look like."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastslow.engine.params import Loop
from fastslow.engine.sampling.confidence import AnswerProbe
from fastslow.engine.sampling.thinking import Steering, Thinking
from fastslow.engine.sampling.thinking_limits import ThinkingLimits
from fastslow.engine.text.thought import TagTokens, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer

THINK = ThoughtTags("<think>", "</think>")


@dataclass(frozen=True)
class Bound:
    """A thinking budget that a test wants; the fields are those of `Mode`."""

    most: int | None = None
    soft: int = 0
    loop: Loop | None = None
    closing: str = ""
    opened: bool = False
    tags: ThoughtTags = THINK
    warning: str = ""
    warn_at: int | None = None  # tokens of thought
    ends_at: int | None = None  # tokens of the answer
    room: int | None = None
    ends: frozenset[int] = frozenset()
    every: int | None = None  # tokens of thought, after which it is asked for its answer
    asked: tuple[int, int] = (2, 2)  # tokens that are compared, equal answers in a row
    sure: float = 0.0
    prefix: tuple[int, ...] = ()

    def of(self, tokenizer: Tokenizer, prompt_length: int) -> Thinking:
        tags = TagTokens(tokenizer, self.tags)
        limits = ThinkingLimits(self.most, None, self.soft, self.ends_at, self.warn_at, self.loop)
        warning = tags.written(self.warning) if self.warning else ()
        closing = tags.closing(self.closing)
        probe = None if self.every is None else AnswerProbe([*closing, *self.prefix], *self.asked, self.sure, ())
        steering = Steering(limits, closing, warning, self.ends, self.room, self.every, probe)
        return Thinking(tags, self.opened, prompt_length, steering)


def told(thinking: Thinking, prompt: Sequence[int], answer: Sequence[int]) -> list[object]:
    """List what holds at each place of an answer, asked for one by one and without a draft."""
    return [thinking.at([*prompt, *answer[:i]], []) for i in range(len(answer) + 1)]
