"""Thinking budgets for tests: what a request may be given, and what its answer must then look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastslow.engine.sampling.thinking import Thinking
from fastslow.engine.text.thought import TagTokens, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.policies.thinking import ThinkingBudget

THINK = ThoughtTags("<think>", "</think>")


@dataclass(frozen=True)
class Bound:
    """A thinking budget that a test wants; the fields are those of `Mode`."""

    most: int | None = None
    soft: int = 0
    early_exit: bool = False
    closing: str = ""
    opened: bool = False
    tags: ThoughtTags = THINK

    def of(self, tokenizer: Tokenizer, prompt_length: int) -> Thinking:
        tags = TagTokens(tokenizer, self.tags)
        policy = ThinkingBudget(self.most, self.soft, self.early_exit)
        return Thinking(tags, self.opened, prompt_length, policy, tags.closing(self.closing))


def told(thinking: Thinking, prompt: Sequence[int], answer: Sequence[int]) -> list[object]:
    """What holds at each place of an answer, asked for one by one and without a draft."""
    return [thinking.at([*prompt, *answer[:i]], []) for i in range(len(answer) + 1)]
