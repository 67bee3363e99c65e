"""Drafting by a model, all requests of the batch in lockstep: one small forward a level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

from loguru import logger

from fastslow.draft.base import BaseDrafter
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.draft.model.runs import ChainRun, DraftRun, TreeRun
from fastslow.draft.model.vocab import VocabMap
from fastslow.draft.several import on_each
from fastslow.engine.model.base import Model
from fastslow.engine.rows import Rows
from fastslow.engine.sampling.grammars.grammar import GrammarError
from fastslow.engine.sampling.probs import greedy
from fastslow.engine.types import ModelOutput, RequestView, TargetProbs, Tree

READ_ROWS = 512  # of text in one forward: a long prompt is read piece by piece


class LockstepDraft(BaseDrafter, ABC):
    """The loop that drafting models share; `_begin` makes a request's draft. Logits stay on the model's device, which
    may differ from the target's. kv: `OwnKV` for a separate model, `BorrowedKV` for the target itself; on the model's
    device."""

    def __init__(self, model: Model, kv: DraftKV) -> None:
        self._model = model
        self._kv = kv

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        begun = [self._begin(r, n) if n > 0 else None for r, n in zip(batch, nodes)]
        runs = [run for run in begun if run is not None]
        self._prefill([run.text for run in runs])
        while active := [run for run in runs if run.open]:
            self._step(active)
        for run in runs:
            self._kv.written(run.text)
        return [Tree() if run is None else run.tree() for run in begun]

    def forget(self) -> None:
        self._kv.forget()

    def release(self, requests: Collection[int]) -> None:
        self._kv.release(requests)

    @abstractmethod
    def _begin(self, request: RequestView, nodes: int) -> DraftRun | None:
        """A draft of at most `nodes` nodes; None = this request gets none."""

    def _prefill(self, texts: Sequence[DraftText]) -> None:
        """Read long texts, up to a rest that one forward takes."""
        cache = self._kv.cache
        while sum(text.pending for text in texts) > max(READ_ROWS, len(texts)):
            left, segments = READ_ROWS, []
            for text in texts:
                size = min(text.pending - 1, left)
                if size > 0:
                    segments.append(text.segment(cache, size))
                    left -= size
            self._model.forward(Rows.of(segments), cache.storage)

    def _step(self, active: Sequence[DraftRun]) -> None:
        parts = [run.rows(self._kv.cache) for run in active]
        rows = Rows.of([segment for part in parts for segment in part])
        out = self._model.forward(rows, self._kv.cache.storage)
        first = 0
        for run, part in zip(active, parts):
            own = slice(first, first + len(part))
            try:
                run.take(ModelOutput(out.logits[own], None, out.best[own]))
            except (FloatingPointError, GrammarError) as error:  # its neighbours draft on
                logger.warning("a draft ends early: {}", error)
                run.stop()
            first += len(part)


class ModelDraft(LockstepDraft):
    """Drafts with a model whose tokens are the target's, all or most of them.

    At temperature 0 the nodes are chosen: the best token after each, or with `width` above 1 a tree of
    the likeliest nodes. Else a chain is sampled from the draft model's own probabilities under the
    request's parameters.

    Args:
        model, kv: see `LockstepDraft`; for self-speculation the model is the target, or
            `target.layer_subset(layers)`.
        target_probs: logits -> probabilities under a request's parameters.
        groups: routed groups to run, or without groups experts; None = all, 0 = shared experts only. A
            request that runs fewer itself drafts with its own number.
        width: most children of a node; 1 = chains.
        only_best: whether the largest logit alone decides a request's tokens; None = for no request.
    """

    def __init__(
        self,
        model: Model,
        kv: DraftKV,
        target_probs: TargetProbs,
        groups: int | None = None,
        width: int = 1,
        vocab_map: VocabMap | None = None,
        only_best: Callable[[RequestView], bool] | None = None,
    ) -> None:
        super().__init__(model, kv)
        self._target_probs = target_probs
        self._groups = groups
        self._width = width
        self._vocab_map = vocab_map or VocabMap()
        # a map needs the logits of all tokens that both models have
        self._only_best = only_best if vocab_map is None else None

    def release(self, requests: Collection[int]) -> None:
        parts = (self._kv.release, self._vocab_map.release)
        on_each(parts, lambda release: release(requests))

    def _begin(self, request: RequestView, nodes: int) -> DraftRun | None:
        tokens = list(self._vocab_map.text(request))
        if not tokens or len(tokens) + nodes > self._model.config.context:
            return None
        groups = self._groups
        if groups is not None and request.groups is not None:
            groups = min(groups, request.groups)
        rope = self._model.config.rope_length(request.max_len)
        text = DraftText(request, tokens, len(tokens) - 1, groups, request.max_len, rope)
        if not (nodes := self._kv.prepare(text, nodes)):
            return None
        if self._width > 1 and greedy(request):
            return TreeRun(text, nodes, self._width, self._target_probs, self._vocab_map)
        text.only_best = self._only_best is not None and self._only_best(request)
        return ChainRun(text, nodes, self._target_probs, self._vocab_map)
