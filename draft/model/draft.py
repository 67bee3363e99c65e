"""Drafting by a model, all requests of the batch in lockstep: one small forward a token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loguru import logger

from fastslow.draft.base import BaseDrafter
from fastslow.draft.model.chain import ModelChain
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.draft.model.vocab import VocabMap
from fastslow.draft.several import on_each
from fastslow.engine.model.base import Model
from fastslow.engine.rows import Rows
from fastslow.engine.sampling.grammars.grammar import GrammarError
from fastslow.engine.sampling.probs import only_best
from fastslow.engine.types import ModelOutput, RequestView, Tree

READ_ROWS = 512  # of text in one forward: a long prompt is read piece by piece


class ModelDraft(BaseDrafter):
    """Drafts chains with a model. At temperature 0 the nodes are its best tokens; else they are sampled from its own
    probabilities under the request's parameters. Logits stay on the model's device, which may differ from the target's.

    Args:
        model: for self-speculation the target, or `target.layer_subset(layers)`.
        kv: `OwnKV` for a separate model, `BorrowedKV` for the target itself; on the model's device.
        groups: routed groups to run, or without groups experts; None = all, 0 = shared experts only. A
            request that runs fewer itself drafts with its own number.
        vocab_map: between the target's tokens and the model's; None: they are the same.
    """

    def __init__(
        self,
        model: Model,
        kv: DraftKV,
        groups: int | None = None,
        vocab_map: VocabMap | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._groups = groups
        self._vocab_map = vocab_map or VocabMap()
        self._maps = vocab_map is not None  # which needs the logits of all tokens that both have

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        begun = [self._begin(r, n) if n > 0 else None for r, n in zip(batch, nodes)]
        chains = [chain for chain in begun if chain is not None]
        self._prefill([chain.text for chain in chains])
        while active := [chain for chain in chains if chain.open]:
            self._step(active)
        for chain in chains:
            self._kv.written(chain.text)
        return [Tree() if chain is None else chain.tree() for chain in begun]

    def forget(self) -> None:
        self._kv.forget()

    def release(self, requests: Collection[int]) -> None:
        parts = (self._kv.release, self._vocab_map.release)
        on_each(parts, lambda release: release(requests))

    def _begin(self, request: RequestView, nodes: int) -> ModelChain | None:
        """A chain of at most `nodes` nodes; None = this request gets none."""
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
        text.only_best = not self._maps and only_best(request)
        return ModelChain(text, nodes, self._vocab_map)

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

    def _step(self, active: Sequence[ModelChain]) -> None:
        rows = Rows.of([chain.rows(self._kv.cache) for chain in active])
        out = self._model.forward(rows, self._kv.cache.storage)
        for n, chain in enumerate(active):
            own = slice(n, n + 1)
            try:
                chain.take(ModelOutput(out.logits[own], None, out.best[own]))
            except (FloatingPointError, GrammarError) as error:  # its neighbours draft on
                logger.warning("a draft ends early: {}", error)
                chain.stop()
