"""A draft without branches, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from fastslow.draft.model.kv import DraftText
from fastslow.draft.model.lexicon import Lexicon
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import (
    Floats,
    ModelOutput,
    OneHot,
    RequestView,
    Segment,
    TargetProbs,
    ThinkingRule,
    Tree,
)

# A greedy target takes its best token: the draft model's best is it more often than its probability
# says. Below 1 that is nearer; at 1, trees were too wide.
WARM = {"temperature": 0.6, "top_k": -1, "top_p": 1.0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Warm:
    """A view at a mild temperature, with the request's own bias, penalties and ends."""

    id: int
    tokens: list[int]
    prompt_length: int
    end_ids: frozenset[int]
    computed: int
    params: SamplingParams
    speculation: Speculation
    groups: int | None
    seed: int
    max_len: int
    reproducible: bool
    thinking: ThinkingRule | None

    @classmethod
    def of(cls, request: RequestView) -> Self:
        """Of a request as it stands."""
        return cls(
            id=request.id,
            tokens=request.tokens,
            prompt_length=request.prompt_length,
            end_ids=request.end_ids,
            computed=request.computed,
            params=request.params.model_copy(update=WARM),
            speculation=request.speculation,
            groups=request.groups,
            seed=request.seed,
            max_len=request.max_len,
            reproducible=request.reproducible,
            thinking=request.thinking,
        )


class ChainRun:
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

    def __init__(self, text: DraftText, most: int, law: TargetProbs, lexicon: Lexicon) -> None:
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

    def take(self, out: ModelOutput) -> None:
        request = self.text.request
        if self.text.only_best:
            law: Floats | OneHot = self._told() or OneHot(best_of(out))
        else:
            law = self._law(self._lexicon.logits(out.logits)[0], request, self._drafted)
        if isinstance(law, OneHot):
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

    def _told(self) -> OneHot | None:
        """The token that the request's thinking budget forces here."""
        request = self.text.request
        if request.thinking is None:
            return None
        told = request.thinking.at(request.tokens, self._drafted)
        return told if isinstance(told, OneHot) else None

    def stop(self) -> None:
        self._most = len(self._drafted)

    def tree(self) -> Tree:
        return Tree.chain(self._drafted, np.stack(self._laws) if self._laws else None)


def best_of(out: ModelOutput) -> int:
    """The likeliest token of a row of which no more was wanted.

    Raises:
        FloatingPointError: some logit is not finite.
    """
    token = int(out.best[0])
    if token < 0:
        raise FloatingPointError("the draft model's logits are not finite numbers")
    return token
