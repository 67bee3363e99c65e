"""A draft without branches, token by token."""

from __future__ import annotations

import numpy as np

from fastslow.draft.model.lexicon import Lexicon
from fastslow.draft.model.text import Text
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.noise import Purpose, draw, stream
from fastslow.engine.types import Certain, Floats, Law, Output, Segment, Tree


class Chain:
    """At temperature 0 its nodes are chosen; else they are sampled from the draft model's own law
    under the request's parameters, and that law is handed on as `probs`. For a request that is to be
    reproducible they are drawn with the numbers that the target's tokens will be drawn with: chosen
    nodes, which agree more often than independent ones.

    Args:
        text: what it follows.
        most: nodes to draft.
        law: logits -> law under a request's parameters.
        lexicon: between the draft model's tokens and the target's.
    """

    def __init__(self, text: Text, most: int, law: Law, lexicon: Lexicon) -> None:
        self.text = text
        self._most = most
        self._law = law
        self._lexicon = lexicon
        request = text.request
        # new in each step: a rule may have looked at what a number behind a refused token gave
        self._draws = stream(request.seed, len(request.tokens), Purpose.DRAFT)
        self._drafted: list[int] = []
        self._laws: list[Floats] = []

    @property
    def open(self) -> bool:
        return len(self._drafted) < self._most

    def rows(self, cache: KVCache) -> list[Segment]:
        return [self.text.rest(cache)]

    def take(self, out: Output) -> None:
        request = self.text.request
        if self.text.only_best:
            law: Floats | Certain = self._told() or Certain(best_of(out))
        else:
            law = self._law(self._lexicon.logits(out.logits)[0], request, self._drafted)
        if isinstance(law, Certain):
            token = law.token
        elif request.reproducible:
            place = len(request.tokens) + len(self._drafted)
            token = draw(law, stream(request.seed, place, Purpose.ACCEPT))
        else:
            token = draw(law, self._draws)
            self._laws.append(law)
        self._drafted.append(token)
        own = self._lexicon.token(token)
        if own is None:
            self.stop()
        else:
            self.text.tokens.append(own)

    def _told(self) -> Certain | None:
        """The token that the request's thinking budget forces here."""
        request = self.text.request
        if request.thinking is None:
            return None
        told = request.thinking.at(request.tokens, self._drafted)
        return told if isinstance(told, Certain) else None

    def stop(self) -> None:
        self._most = len(self._drafted)

    def tree(self) -> Tree:
        return Tree.chain(self._drafted, np.stack(self._laws) if self._laws else None)


def best_of(out: Output) -> int:
    """The likeliest token of a row of which no more was wanted.

    Raises:
        FloatingPointError: some logit is not finite.
    """
    token = int(out.best[0])
    if token < 0:
        raise FloatingPointError("the draft model's logits are not finite numbers")
    return token
