"""When a thought has to end: after a budget of tokens, in a loop, or when it has settled."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.sampling.thinking import Ending, Thought

SURE = 12.0  # added to the closing tag's logit at the last token of a soft budget
LONGEST_SPAN = 64  # tokens that a loop repeats, at most
LOOPS, MIN_TOKENS = 4, 40  # loop: a span came LOOPS times in a row, MIN_TOKENS tokens or more
REPEATS, MIN_CHARS = 3, 8  # settled: a line of MIN_CHARS characters came REPEATS times


class ThinkingBudget:
    """At most `most` tokens of thought; fewer where it loops or has settled.

    *Loop*: the latest 40 tokens or more are one span of at most 64 tokens, four times in a row.
    *Settled*: the thought has written the same line for the third time. A line is the text between two
    newlines, stripped, if it has 8 characters or more. Both depend on the thought's tokens alone, so
    they need no logits. They are guesses (code may well repeat a line), so both are off by default.

    A *soft* budget makes the closing tag likelier over its last tokens: what is added to the tag's
    logit rises evenly from 0 to 12, so that the model can choose where it closes.

    most: tokens, over all thoughts of an answer; None = any number. soft: how many of the last tokens of `most` are
    soft. early_exit: whether loops and settled thoughts are ended.
    """

    def __init__(self, most: int | None, soft: int = 0, early_exit: bool = False) -> None:
        self._most = most
        self._soft = 0 if most is None else min(soft, most)
        self.reads = max(LOOPS * LONGEST_SPAN, MIN_TOKENS) if early_exit else 0

    def judge(self, thought: Thought) -> Ending | None:
        if self._most is not None and thought.spent >= self._most:
            return "budget"
        if not self.reads:
            return None
        if thought.said >= REPEATS and len(thought.line) >= MIN_CHARS:
            return "settled"
        return "loop" if _loops(thought.recent) else None

    def lift(self, spent: int) -> float:
        if self._most is None or not self._soft:
            return 0.0
        near = spent - (self._most - self._soft) + 1  # soft tokens so far, with the next
        return SURE * min(near, self._soft) / self._soft if near > 0 else 0.0

    def lifts(self, spent: range) -> bool:
        if self._most is None or not self._soft:
            return False
        return spent.start < self._most and spent.stop > self._most - self._soft


def _loops(tokens: Sequence[int]) -> bool:
    last = tokens[-1] if tokens else None
    for span in range(1, min(LONGEST_SPAN, len(tokens) // LOOPS) + 1):
        size = max(LOOPS * span, MIN_TOKENS)
        if size > len(tokens) or tokens[-1 - span] != last:
            continue
        if tokens[-size:-span] == tokens[span - size :]:
            return True
    return False
