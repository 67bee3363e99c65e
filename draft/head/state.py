"""The head drafter's state of a text: its rows, and the tokens that can be drafted in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.cpu.draft_head import as_floats
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.types import Floats

MAX_OWN = 512  # own tokens: names and numbers of a prompt, not a long document's whole vocabulary


class DraftVocab:
    """The draft vocabulary that all requests share: `ids` int64 [D], and the target's `head` [V, H], whose
    rows are read when a text has other tokens; None: no other tokens can be drafted."""

    def __init__(self, ids: Tensor, head: Tensor | RowFile | None) -> None:
        self.ids = ids
        self.known = frozenset(ids.tolist())
        self.head = head


class RequestVocab:
    """The tokens that can be drafted in one text: `shared`, and those of the text itself. latest: f32 [n, H], the
    target's head rows of the own tokens that were added last."""

    def __init__(self, shared: DraftVocab) -> None:
        self._shared = shared
        self._own: dict[int, None] = {}
        width = 0 if shared.head is None else shared.head.shape[1]
        self.latest: Floats = np.empty((0, width), dtype=np.float32)
        self._parts = [self.latest]

    @property
    def ids(self) -> Tensor:
        """int64 [D + E], the shared tokens and then the text's own."""
        own = torch.tensor(list(self._own), dtype=torch.long)
        return torch.cat((self._shared.ids, own)) if self._own else self._shared.ids

    @property
    def rows(self) -> Tensor:
        """f32 [E, H], the target's head rows of its own tokens."""
        self._parts = [np.concatenate(self._parts)]
        return torch.from_numpy(self._parts[0])

    def add(self, tokens: Iterable[int]) -> list[int]:
        """Add tokens; gives those that were new."""
        known, own, head = self._shared.known, self._own, self._shared.head
        new = [token for token in dict.fromkeys(tokens) if token not in known and token not in own]
        new = new[: MAX_OWN - len(own)]
        if head is None or not new:
            return []
        if isinstance(head, RowFile):
            self.latest = head.floats(new)
        else:
            self.latest = as_floats(head[torch.tensor(new)])
        self._parts.append(self.latest)
        own.update(dict.fromkeys(new))
        return new


@dataclass(slots=True)
class HeadState:
    """A text's rows.

    Attributes:
        text: its number in the runner.
        position: of the next row that the runner takes.
        tokens: of the text; the engine adds to them.
        first: rows from this position to `position` are held without a gap.
        features, after: committed rows that the runner does not have yet, and the token after each.
        can_draft: whether the last known row can be drafted from.
        key: only texts with the same key may reuse its rows.
        shared: whether any may.
    """

    text: int
    position: int
    tokens: list[int]
    first: int
    features: list[Floats] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    can_draft: bool = False
    key: str | None = None
    shared: bool = True

    @property
    def end(self) -> int:
        """The position after the last known row."""
        return self.position + len(self.after)

    def flushed(self) -> None:
        """The runner has all rows now."""
        self.position = self.end
        self.features, self.after = [], []

    def shared_rows(self, tokens: list[int], end: int) -> int:
        """Count its rows before `end` that a text of these tokens can reuse."""
        end = min(end, self.position)
        # a row is made of its token's features and of the token after it
        same = end > self.first and self.tokens[: end + 1] == tokens[: end + 1]
        return end if same else 0


class FinishedTexts(deque[HeadState]):
    """The latest finished texts, `max_rows` rows in all: a next turn begins like one of them, and its
    target finds their rows in the prefix cache and so gives no features for them."""

    def __init__(self, max_rows: int) -> None:
        super().__init__()
        self._max_rows = max_rows

    def add(self, state: HeadState) -> list[HeadState]:
        """Keep a text; gives the texts that are dropped for it."""
        state.features, state.after = [], []
        self.append(state)
        rows, dropped = sum(one.position for one in self), list[HeadState]()
        while rows > self._max_rows:
            dropped.append(self.popleft())
            rows -= dropped[-1].position
        return dropped
