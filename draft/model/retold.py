"""A drafting model with other tokens: what it says is told again in the target's."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor

from fastslow.draft.model.chain import best_of
from fastslow.draft.model.follow import Follower
from fastslow.draft.model.kv import DraftKV
from fastslow.draft.model.lockstep import Lockstep, Run
from fastslow.draft.model.spelling import Speller, Spelling, marks
from fastslow.draft.model.tell import Teller
from fastslow.draft.model.text import Text
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.types import Output, RequestView, Segment, Tree


class Retold:
    """One request's chain while it is drafted: chosen, the draft model's best token after each.

    Args:
        text: what it follows.
        most: nodes to draft, in the target's tokens.
        room: tokens that the draft model may say.
        teller: its tokens -> the target's.
        vocabulary: its tokens; logits may have more columns.
        begun: see `Teller.tell`.
    """

    def __init__(
        self, text: Text, most: int, room: int, teller: Teller, vocabulary: int, begun: bytes
    ) -> None:
        self.text = text
        self._most = most
        self._room = room
        self._teller = teller
        self._vocabulary = vocabulary
        self._begun = begun
        self._drafted: list[int] = []
        self._told: list[int] = []
        self._goes_on = True

    @property
    def open(self) -> bool:
        goes_on = self._goes_on and len(self._drafted) < self._room
        return goes_on and len(self._told) < self._most

    def rows(self, cache: KVCache) -> list[Segment]:
        return [self.text.rest(cache)]

    def take(self, out: Output) -> None:
        token = best_of(out) if self.text.only_best else self._best_known(out.logits[0])
        self._drafted.append(token)
        self.text.tokens.append(token)
        self._told, self._goes_on = self._teller.tell(self._drafted, self._begun)

    def stop(self) -> None:
        self._goes_on = False

    def tree(self) -> Tree:
        return Tree.chain(self._told[: self._most])

    def _best_known(self, logits_V: Tensor) -> int:
        """The likeliest of the tokens that the tokenizer knows."""
        best, token = logits_V[: self._vocabulary].max(dim=-1)
        if not math.isfinite(best):
            raise FloatingPointError("the draft model's logits are not finite numbers")
        return int(token)


class RetoldDraft(Lockstep):
    """Chains from a model of any vocabulary, its text encoded again in the target's tokens.

    String-level exact match of Timor et al., arXiv 2502.05202: the draft model goes on, greedily,
    with the text of the request; its bytes become tokens of the target, which are *chosen* nodes,
    so the answer follows the target's law at any temperature.

    Args:
        model: the drafting model.
        kv: pages of its own.
        target: the target's tokenizer.
        own: the draft model's.
    """

    def __init__(self, model: Model, kv: DraftKV, target: Spelling, own: Spelling) -> None:
        super().__init__(model, kv)
        self._target = target
        self._speller = Speller(own)
        self._teller = Teller(own, Speller(target))
        self._marks = marks(target, own)
        self._followed: dict[int, Follower] = {}
        self._reach: dict[int, int] = {}

    def release(self, requests: Collection[int]) -> None:
        super().release(requests)
        for request in requests:
            self._followed.pop(request, None)
            self._reach.pop(request, None)

    def _begin(self, request: RequestView, most: int) -> Run | None:
        follower = self._followed.get(request.id)
        if follower is None:
            follower = Follower(self._target, self._speller, self._marks)
            self._followed[request.id] = follower
        tokens = follower.follow(request.tokens)
        room = min(2 * most + 4, self._model.config.context - len(tokens))
        if not tokens or room < 1:
            return None
        stays = min(follower.settled, len(tokens) - 1)
        vocabulary = self._speller.tokenizer.vocab_size
        no_more = vocabulary == self._model.config.vocab_size  # logits than tokens
        reach = self._reach_of(request, len(tokens))
        text = Text(request, tokens, stays, None, reach, no_more)
        if not self._kv.ready(text, room):
            return None
        return Retold(text, most, room, self._teller, vocabulary, follower.begun)

    def _reach_of(self, request: RequestView, length: int) -> int:
        """The longest text in the draft model's tokens, guessed once: a rotary base may hang on it."""
        if request.id not in self._reach:
            share = length / len(request.tokens)
            self._reach[request.id] = math.ceil(max(request.reach, len(request.tokens)) * share)
        return self._reach[request.id]
