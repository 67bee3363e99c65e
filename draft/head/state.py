"""What a head's drafter holds for texts: those that are drafted for, and those that were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class State:
    """What is held for a text.

    Attributes:
        text: its number in the runner.
        position: of the next row to take in.
        tokens: of the text; the engine adds to them.
        since: rows from here to `position` are there, without a gap.
        features, after: committed rows not taken in yet, and the token after each.
        begun: whether the last row that is known is one to draft from.
    """

    text: int
    position: int
    tokens: list[int]
    since: int
    features: list[Tensor] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    begun: bool = False

    @property
    def end(self) -> int:
        """The position after the last row that is known."""
        return self.position + len(self.after)

    def skip(self, position: int) -> None:
        """The next row stands there."""
        self.position = self.since = position

    def shared(self, tokens: list[int], first: int) -> int:
        """How many rows in front of `first` a text of these tokens can take over; 0 = none."""
        end = min(first, self.position)
        # a row is made of its token's features and of the token behind it
        alike = end > self.since and self.tokens[: end + 1] == tokens[: end + 1]
        return end if alike else 0


class Kept:
    """Texts that have ended, the latest ones: a next turn begins as one of them, and its target finds
    their rows in the prefix cache and shows them to nobody.

    Args:
        most: rows of all of them together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows = 0
        self._states: deque[State] = deque()

    def __iter__(self) -> Iterator[State]:
        return iter(self._states)

    def add(self, state: State) -> Iterable[State]:
        """Keep a text; gives those that are kept no longer."""
        state.features, state.after = [], []
        self._states.append(state)
        self._rows += state.position
        gone = []
        while self._rows > self._most:
            gone.append(self._states.popleft())
            self._rows -= gone[-1].position
        return gone
