"""When a thought has to end, or hears a warning: budgets, room for the answer, circles."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fastslow.engine.params import Loop
from fastslow.engine.sampling.repeats import Repeats
from fastslow.engine.sampling.thinking import Ending, Thought

SURE = 12.0  # added to the closing tag's logit at the last token of a soft budget
MOST_ROOM = 256  # tokens for the answer, of itself
MOST_TURNS = 10_000  # that are remembered: those named last
SHARE = 4  # of an answer's tokens, of which one is for what follows the thought


@dataclass(frozen=True, slots=True)
class ThinkingLimits:
    """What bounds the thoughts of an answer. Without a field nothing does.

    A *soft* budget makes the closing tag likelier over its last tokens: what is added to the tag's
    logit rises evenly from 0 to 12, so that the model can choose where it closes.

    A text goes round in *circles* where its latest tokens are one run of tokens, `loop.times` times in a row and
    `loop.least` tokens or more; or where none of its last `loop.stale` tokens ended 8 tokens that had not come in
    this thought before. Both depend on the tokens alone, so they need no logits.

    most: tokens of thought, over all thoughts of an answer. turn: the same, left of the turn's budget. soft: how many
    of the last tokens of `most` are soft. ends_at: the thought is closed before so many tokens of the answer were made,
    tags included. warn_at: tokens of thought after which a warning is due.
    """

    most: int | None = None
    turn: int | None = None
    soft: int = 0
    ends_at: int | None = None
    warn_at: int | None = None
    loop: Loop | None = None

    @property
    def repeats(self) -> bool:
        return self.loop is not None

    def judge(self, thought: Thought) -> Ending | None:
        if self.most is not None and thought.spent >= self.most:
            return "budget"
        if self.turn is not None and thought.spent >= self.turn:
            return "turn"
        if self.ends_at is not None and thought.made + thought.closing >= self.ends_at:
            return "room"
        return "loop" if self._circles(thought.repeats) else None

    def warns(self, thought: Thought, size: int) -> bool:
        fits = self.ends_at is None or thought.made + size + thought.closing < self.ends_at
        return fits and self.warn_at is not None and thought.spent >= self.warn_at

    def circles(self, repeats: Repeats) -> bool:
        return self.loop is not None and self.loop.answer and self._circles(repeats)

    def lift(self, spent: int) -> float:
        if self.most is None or not self.soft:
            return 0.0
        soft = min(self.soft, self.most)
        near = spent - (self.most - soft) + 1  # soft tokens so far, with the next
        return SURE * min(near, soft) / soft if near > 0 else 0.0

    def lifts(self, spent: range) -> bool:
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


def answer_room(wish: int | str | None, room: int) -> int | None:
    """How many of an answer's `room` tokens stay for what follows the thought. None: no number is kept."""
    return max(1, min(MOST_ROOM, room // SHARE)) if wish == "auto" else wish  # type: ignore[return-value]


class Turn:
    """One turn of a user. `spent`: tokens of thought so far."""

    def __init__(self) -> None:
        self.spent = 0

    def note(self, before: int, thought: int) -> None:
        """An answer is over that began after `before` tokens; of several at a time the longest counts."""
        self.spent = max(self.spent, before + thought)


class Turns:
    """The turns that calls name, by whoever names them."""

    def __init__(self) -> None:
        self._turns = OrderedDict[tuple[str | None, str], Turn]()

    def of(self, memory_key: str | None, name: str) -> Turn:
        turn = self._turns.setdefault((memory_key, name), Turn())
        self._turns.move_to_end((memory_key, name))
        while len(self._turns) > MOST_TURNS:
            self._turns.popitem(last=False)
        return turn
