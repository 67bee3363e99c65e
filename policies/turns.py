"""Tokens that the calls of a user's turn may think together, and tokens of an answer for what follows a thought."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from weakref import WeakSet

from fastslow.engine.fair_table import FairTable

MOST_ROOM = 256  # tokens for the answer, of itself
MOST_TURNS = 10_000  # that are remembered, of all shares
SHARE = 4  # of an answer's tokens, of which one is for what follows the thought


def answer_room(wish: int | str | None, room: int) -> int | None:
    """The number of an answer's `room` tokens that stay for what follows the thought. None: no number is kept."""
    return max(1, min(MOST_ROOM, room // SHARE)) if wish == "auto" else wish  # type: ignore[return-value]


@dataclass(eq=False)
class TurnCall:
    """A call of a turn. before: tokens of thought that other calls spent, or may yet. most: its own may spend.
    answers: that are not over. thought: of its longest answer. resumed: it continues an answer, whose thoughts so far
    may be counted in `before` or not."""

    turn: Turn
    before: int
    most: int
    answers: int
    thought: int = 0
    resumed: bool = False

    def note(self, thought: int) -> None:
        """Note that one of its answers is over; of several the longest counts."""
        self.thought, self.answers = max(self.thought, thought), self.answers - 1
        if not self.answers:
            self.turn.end(self)


class Turn:
    """A turn of a user: tokens of thought in calls that are over, and what those that run may yet use."""

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
