"""Turns of users whose calls share one budget of thought."""

from __future__ import annotations

from collections import OrderedDict

MOST_TURNS = 10_000  # that are remembered: those named last


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
