"""What a head's drafter holds for a text: its rows, and the tokens that it can be drafted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastslow.engine.model.row_file import RowFile

MOST = 512  # own tokens: names and numbers of a prompt, not a long document's whole vocabulary


class DraftVocab:
    """The draft vocabulary that all requests share, with the target's head to add rows from.

    Args:
        tokens: int64 [D].
        head: [V, H], the target's; rows of it are read when they are needed.

    Attributes:
        ids: `tokens`.
        known: the same, to look up.
    """

    def __init__(self, tokens: Tensor, head: Tensor | RowFile) -> None:
        self.ids = tokens
        self.known = frozenset(tokens.tolist())
        self.head = head


class RequestVocab:
    """Grows with the text.

    Args:
        common: what every request can be drafted.

    Attributes:
        ids: int64 [D + E], the common tokens and then the own ones.
        rows: f32 [E, H], the target's head rows of the own ones.
    """

    def __init__(self, common: DraftVocab) -> None:
        self._common = common
        self._own: dict[int, None] = {}
        self.ids = common.ids
        self.rows = torch.empty(0, common.head.shape[1])

    def add(self, tokens: Iterable[int]) -> None:
        """Tokens that came in the text."""
        before = len(self._own)
        for token in tokens:
            if token not in self._common.known and len(self._own) < MOST:
                self._own[token] = None
        if len(self._own) > before:
            own = torch.tensor(list(self._own))
            self.ids = torch.cat((self._common.ids, own))
            fresh = self._common.head[own[before:]].to("cpu", torch.float32)
            self.rows = torch.cat((self.rows, fresh))


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


class FinishedTexts:
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
