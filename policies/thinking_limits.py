"""When a thought has to end, or hears a warning: budgets, room for the answer, circles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from weakref import WeakSet

from fastslow.engine.fair_table import FairTable
from fastslow.engine.params import Loop
from fastslow.engine.sampling.repeats import Repeats
from fastslow.engine.sampling.thinking_policy import Ending, Thought

SURE = 12.0  # added to the closing tag's logit at the last token of a soft budget
MOST_ROOM = 256  # tokens for the answer, of itself
MOST_TURNS = 10_000  # that are remembered, of all shares
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
    tags included. warn_at: tokens of thought after which a warning is due. It needs room in the budget, since it counts.
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
        if self.warn_at is None or thought.spent < self.warn_at:
            return False
        left = min((n for n in (self.most, self.turn) if n is not None), default=math.inf)
        fits = self.ends_at is None or thought.made + size + thought.closing < self.ends_at
        return fits and thought.spent + size < left

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


@dataclass(eq=False)
class TurnCall:
    """One call of a turn. before: tokens of thought that other calls spent, or may yet. most: its own may spend.
    answers: that are not over. thought: of its longest answer. resumed: it continues an answer, whose thoughts so far
    may be counted in `before` or not."""

    turn: Turn
    before: int
    most: int
    answers: int
    thought: int = 0
    resumed: bool = False

    def note(self, thought: int) -> None:
        """One of its answers is over; of several the longest counts."""
        self.thought, self.answers = max(self.thought, thought), self.answers - 1
        if not self.answers:
            self.turn.end(self)


class Turn:
    """One turn of a user: tokens of thought in calls that are over, and what those that run may yet use."""

    def __init__(self) -> None:
        self.spent = 0
        self._running: WeakSet[TurnCall] = WeakSet()  # one that never runs is let go of
        self._lock = Lock()

    @contextmanager
    def begin(self, most: int, answers: int = 1) -> Iterator[TurnCall]:
        """A call that may think so much in each answer. From now on all others count it, unless it fails in here."""
        with self._lock:
            before = self.spent + sum(call.most for call in self._running)
            call = TurnCall(self, before, most, answers)
            self._running.add(call)
        try:
            yield call
        except BaseException:
            self.end(call)
            raise

    def end(self, call: TurnCall) -> None:
        with self._lock:
            self._running.discard(call)
            spent = self.spent + call.thought
            self.spent = max(self.spent, call.before + call.thought) if call.resumed else spent


class Turns:
    """The turns that calls name, of each share its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._turns = FairTable[tuple[str | None, str], Turn](MOST_TURNS)

    def of(self, share: str | None, memory_key: str | None, name: str) -> Turn:
        with self._lock:
            turn = self._turns.get(share, (memory_key, name)) or Turn()
            self._turns.put(share, (memory_key, name), turn)
        return turn
