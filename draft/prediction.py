"""Drafts from what a caller predicts the answer to be."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from fastslow.draft.base import BaseDrafter
from fastslow.draft.merge import MAX_DRAFTERS
from fastslow.draft.suffix.tree import MatchConfidence
from fastslow.engine.types import PREDICTION, RequestView, Tree

SIZES = (8, 4, 2)  # tokens that are looked up where answer and prediction differ, in this order
# tokens that are taken to match before the first one: a caller has a reason to predict
BELIEVED = 12
TRIES = 3  # tokens of an answer after which its beginning is no longer expected
MIN_SCORE = 0.2  # of a node; below it nothing is proposed
NUMBER = 1 << 2 * MAX_DRAFTERS  # `Tree.drafter_ids`, beside those of merged trees


class PredictionDraft(BaseDrafter):
    """Chosen chains of a request's own `prediction`, from the place that its answer has reached.

    The answer is expected to begin as the prediction does, after the thought if there is one. Where it
    differs, the place is looked up by its last tokens: the next match after the last place,
    else the first. Nothing of a prediction is seen by other requests, or kept when its own is over.
    """

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [
            self._tree(request, n) if request.prediction else Tree()
            for request, n in zip(batch, nodes)
        ]

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._places.pop(request, None)

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        place = self._places.get(request.id)
        if place is None:
            place = self._places[request.id] = _Place(request.prediction, request.prompt_length)
        thinking, grammar = request.thinking, request.grammar
        if grammar is not None and grammar.begun(request.tokens):
            thinking = None
        if thinking is not None and thinking.inside(request.tokens):
            place.begin(len(request.tokens))
            return Tree()
        place.follow(request.tokens)
        chain, scores = place.ahead(nodes)
        size = len(chain)
        return Tree(
            chain,
            range(-1, size - 1),
            scores=scores,
            drafter_ids=[NUMBER] * size,
            drafter_names=[PREDICTION] * size,
        )


class _Place:
    """The place of an answer in its prediction."""

    def __init__(self, predicted: Sequence[int], start: int) -> None:
        self._predicted = list(predicted)
        self._data = array("q", predicted).tobytes()
        self._confidence = MatchConfidence()
        self.begin(start)

    def begin(self, start: int) -> None:
        self._start = self._read = start
        self._next = 0  # predicted token that should come now
        self._matched = BELIEVED  # tokens before it; 0: nobody knows the place

    def follow(self, text: Sequence[int]) -> None:
        for token in text[self._read :]:
            if not self._matched:
                break
            if self._next == len(self._predicted):
                self._matched = 0
                break
            right = self._predicted[self._next] == token
            self._confidence.learn(self._matched, right)
            self._next, self._matched = self._next + right, self._matched + 1 if right else 0
        self._read = len(text)
        if not self._matched:
            self._find(text[max(self._start, len(text) - SIZES[0]) :])
            if not self._matched and not self._next and len(text) - self._start < TRIES:
                self._matched = BELIEVED

    def ahead(self, nodes: int) -> tuple[list[int], list[float]]:
        """The next tokens, at most `nodes`, and how likely each is to be accepted."""
        chain: list[int] = []
        scores: list[float] = []
        score = 1.0
        for token in self._predicted[self._next : self._next + nodes] if self._matched else ():
            score *= self._confidence.of(self._matched + len(chain))
            if score < MIN_SCORE:
                break
            chain.append(token)
            scores.append(score)
        return chain, scores

    def _find(self, recent: Sequence[int]) -> None:
        for size in SIZES:
            if size > len(recent):
                continue
            data = array("q", recent[-size:]).tobytes()
            found = self._index(data, self._next)
            if found < 0:
                found = self._index(data, 0)
            if found >= 0:
                self._next, self._matched = found + size, size
                return

    def _index(self, data: bytes, start: int) -> int:
        """The first predicted token from `start` on where these begin, or -1."""
        width = array("q").itemsize
        found = self._data.find(data, start * width)
        while found % width and found >= 0:
            found = self._data.find(data, found + 1)
        return found // width if found >= 0 else -1
