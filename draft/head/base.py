"""What drafting from the target's hidden states needs of a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.context import Context
from fastslow.draft.head.words import Common, Words


class DraftHead(Protocol):
    """`draft.head.head.Head` describes each; `draft.head.mtp` is another."""

    config: HeadConfig
    common: Common
    width: int

    def read(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> Tensor: ...

    def store(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> None: ...

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        parents: Sequence[Sequence[int]],
    ) -> Tensor: ...

    def logits(
        self, hidden: Tensor, words: Sequence[Words], sizes: Sequence[int]
    ) -> list[Tensor]: ...
