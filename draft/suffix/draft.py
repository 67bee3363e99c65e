"""Drafts from text that came before: in this request, in this engine, in a stored corpus."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from fastslow.draft.base import BaseDrafter
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.sources import MAX_MATCH, AnswerMemory, OwnText, Source
from fastslow.draft.suffix.tree import MatchConfidence, MatchRuns, grow
from fastslow.engine.sampling.probs import greedy
from fastslow.engine.types import RequestView, Tree

MIN_SCORE = 0.2  # lower drafts more and errs more: for models whose rows cost next to nothing
MOST_KEYS = 64  # whose confidence is kept
SPARE = 32  # tokens looked ahead beyond a draft, so that a run serves several steps


class _SuffixText:
    def __init__(self, request: RequestView) -> None:
        self.request = request
        self.own = OwnText()
        self.runs = MatchRuns()
        self.length = len(request.tokens)  # tokens that `runs` know of


class SuffixDraft(BaseDrafter):
    """Chosen trees of the tokens after the longest match of the text's end (suffix decoding; Oliaro et
    al. 2024, "SuffixDecoding", after Saxena 2023, "Prompt lookup decoding").

    Sources are the request's own text, `memory` and `corpus`. The longest match wins, and matches of
    equal length count as one. Where they disagree on what comes next, the draft branches.

    corpus: stored answers. memory: answers of the same engine, by the requests' memory keys. Finished answers are
    added to it, but for those that were sampled with a given seed; drafters of one engine may share it. min_score:
    nodes less likely than this to be accepted are not proposed, 0..1.
    """

    def __init__(
        self,
        corpus: Corpus | None = None,
        memory: AnswerMemory | None = None,
        min_score: float = MIN_SCORE,
    ) -> None:
        self._memory = memory
        self._corpus = corpus
        self._min_score = min_score
        # by memory key: drafts that depended on other keys' requests would tell how those went
        self._confidence = lru_cache(MOST_KEYS)(lambda key: MatchConfidence())
        self._texts: dict[int, _SuffixText] = {}

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [self._tree(request, n) for request, n in zip(batch, nodes)]

    def release(self, requests: Collection[int]) -> None:
        for number in requests:
            text = self._texts.pop(number, None)
            if text is not None and self._memory is not None and _can_be_shared(text.request):
                tokens, start = text.request.tokens, text.request.prompt_length
                context = tokens[max(0, start - MAX_MATCH) : start]
                self._memory.add(text.request.memory_key, tokens[start:], context)

    def forget(self) -> None:
        """`memory` is cleared by whoever made it; runs that were found in it end here."""
        for text in self._texts.values():
            text.runs = MatchRuns()

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        text = self._texts.get(request.id)
        if text is None:
            text = self._texts[request.id] = _SuffixText(request)
        if nodes == 0:
            return Tree()
        tokens, confidence = request.tokens, self._confidence(request.memory_key)
        if len(tokens) > text.length:
            text.runs.advance(tokens[text.length :], confidence)
            text.length = len(tokens)
        text.own.read(tokens)  # a little in each step, so that none takes long
        if not text.runs.enough_for(nodes):
            sources = [text.own, *self._shared(request)]
            text.runs = MatchRuns(sources, tokens[-MAX_MATCH:], nodes + SPARE)
        return grow(text.runs, confidence, nodes, self._min_score)

    def _shared(self, request: RequestView) -> list[Source]:
        earlier = None if self._memory is None else self._memory.of(request.memory_key)
        return [source for source in (earlier, self._corpus) if source is not None]


def _can_be_shared(request: RequestView) -> bool:
    """True for a shared answer that ended by itself, without a seed: drafts would know the numbers that verify them."""
    answered = len(request.tokens) > request.prompt_length
    ended = answered and request.tokens[-1] in request.end_ids
    seeded = request.params.seed is not None and not greedy(request)
    return request.shared and (ended or len(request.tokens) > request.max_len) and not seeded
