"""Parts that drafters share: methods that do nothing, and a chain that is drafted token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import AcceptResult, Features, Floats, OneHot, RequestView, Tree


class BaseDrafter:
    """A drafter without features and without state."""

    features: tuple[int, ...] = ()

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return [range(0)] * len(batch)

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        """No features are used."""

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        """Nothing to learn."""

    def forget(self) -> None:
        """Nothing is kept of requests that are over."""

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""


class DraftChain:
    """The chain of one request while it is drafted. Tokens with certain probabilities are chosen; others are
    sampled, and the tree then holds their probabilities. For a reproducible request they are drawn with
    the random numbers of the target's tokens: such tokens are chosen, and agree with the target more
    often than independent ones."""

    def __init__(self, request: RequestView) -> None:
        self._request = request
        # new in each step: a rule may have used the random numbers after a rejected token
        self._rng = stream(request.seed, len(request.tokens), Purpose.DRAFT)
        self._probs: list[Floats] = []
        self.tokens: list[int] = []

    def add(self, probs: Floats | OneHot) -> int:
        """The next token, from probabilities f32 [V]."""
        request = self._request
        if isinstance(probs, OneHot):
            token = probs.token
        elif request.reproducible:
            place = len(request.tokens) + len(self.tokens)
            token = draw(probs, stream(request.seed, place, Purpose.ACCEPT))
        else:
            token = draw(probs, self._rng)
            self._probs.append(probs)
        self.tokens.append(token)
        return token

    def tree(self, scores: Sequence[float] | None = None) -> Tree:
        return Tree.chain(self.tokens, np.stack(self._probs) if self._probs else None, scores)
