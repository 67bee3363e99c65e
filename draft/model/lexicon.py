"""Between the draft model's tokens and the target's, one for one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from fastslow.engine.types import RequestView


class Lexicon(Protocol):
    """What a target's token is to the draft model, and what the draft's logits are to the target."""

    def text(self, request: RequestView) -> Sequence[int]:
        """The request's text in the draft model's tokens; it only grows."""

    def token(self, token: int) -> int | None:
        """The draft model's token for one of the target's that is drafted; None = it has none, as
        where a thinking budget forces a token that it cannot say."""

    def logits(self, logits_MV: Tensor) -> Tensor:
        """The draft model's logits [M, its V] as [M, the target's V]."""

    def release(self, requests: Collection[int]) -> None:
        """These request ids are gone."""


class SameLexicon:
    """Both models share a vocabulary."""

    def text(self, request: RequestView) -> Sequence[int]:
        return request.tokens

    def token(self, token: int) -> int:
        return token

    def logits(self, logits_MV: Tensor) -> Tensor:
        return logits_MV

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""
