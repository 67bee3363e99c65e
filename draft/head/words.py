"""What one request can be drafted: the draft vocabulary, and the tokens of its own text."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastslow.engine.model.row_file import RowFile

MOST = 512  # own tokens: names and numbers of a prompt, not a long document's whole vocabulary


class Common:
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


class Words:
    """Grows with the text.

    Args:
        common: what every request can be drafted.

    Attributes:
        ids: int64 [D + E], the common tokens and then the own ones.
        rows: f32 [E, H], the target's head rows of the own ones.
    """

    def __init__(self, common: Common) -> None:
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
