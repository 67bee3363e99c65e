"""Limits of a thought, at which it has to end or hears a warning: budgets, room for the answer, circles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastslow.engine.params import Loop
from fastslow.engine.sampling.repeats import Repeats

SURE = 12.0  # added to the closing tag's logit at the last token of a soft budget

Ending = Literal["budget", "turn", "room", "loop", "confident", "caller"]
"""Why a thought was closed for the model."""
Ended = Literal["model", Ending]


@dataclass(frozen=True, slots=True)
class ThinkingLimits:
    """Limits of the thoughts of an answer. Without a field nothing bounds them.

    A *soft* budget makes the closing tag likelier over its last tokens: what is added to the tag's
    logit rises evenly from 0 to 12, so that the model can choose where it closes.

    A text goes round in *circles* where its latest tokens are one run of tokens, `loop.times` times in a row and
    `loop.least` tokens or more; or where none of its last `loop.stale` tokens ended 8 tokens that had not come in
    this thought before. Both depend on the tokens alone, so they need no logits.

    most: tokens of thought, over all thoughts of an answer. turn: the same, left of the turn's budget. soft: how many
    of the last tokens of `most` are soft. ends_at: the thought is closed before so many tokens of the answer were made,
    tags included. warn_at: tokens of thought after which a warning is due. It needs room in the budget: it counts.
    """

    most: int | None = None
    turn: int | None = None
    soft: int = 0
    ends_at: int | None = None
    warn_at: int | None = None
    loop: Loop | None = None

    @property
    def repeats(self) -> bool:
        """True where the limits look at repeats."""
        return self.loop is not None

    def judge(self, spent: int, made: int, repeats: Repeats) -> Ending | None:
        """Why a thought is to be closed now; None = it is not.

        spent: tokens that began between the tags, over all thoughts of the answer. made: tokens of the answer once it
        is closed, tags and all that was put in included. repeats: of this thought."""
        if self.most is not None and spent >= self.most:
            return "budget"
        if self.turn is not None and spent >= self.turn:
            return "turn"
        if self.ends_at is not None and made >= self.ends_at:
            return "room"
        return "loop" if self._circles(repeats) else None

    def warns(self, spent: int, made: int, size: int) -> bool:
        """Tell whether a warning of `size` tokens is put in now. spent, made: as in `judge`."""
        if self.warn_at is None or spent < self.warn_at:
            return False
        left = min((n for n in (self.most, self.turn) if n is not None), default=math.inf)
        fits = self.ends_at is None or made + size < self.ends_at
        return fits and spent + size < left

    def circles(self, repeats: Repeats) -> bool:
        """Tell whether an answer goes round in circles."""
        return self.loop is not None and self.loop.answer and self._circles(repeats)

    def lift(self, spent: int) -> float:
        """Return what is added to the closing tag's logit after `spent` tokens; 0 = nothing."""
        if self.most is None or not self.soft:
            return 0.0
        soft = min(self.soft, self.most)
        near = spent - (self.most - soft) + 1  # soft tokens so far, with the next
        return SURE * min(near, soft) / soft if near > 0 else 0.0

    def lifts(self, spent: range) -> bool:
        """Tell whether `lift` is other than 0 anywhere in the range."""
        if self.most is None or not self.soft:
            return False
        return spent.start < self.most and spent.stop > self.most - self.soft

    def _circles(self, repeats: Repeats) -> bool:
        loop, same = self.loop, repeats.run + repeats.lag
        if loop is None or not repeats.lag:
            return False
        if loop.stale is not None and repeats.stale >= loop.stale:
            return True
        return same >= loop.least and same >= loop.times * repeats.lag
