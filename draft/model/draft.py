"""The drafting model whose tokens are the target's, all or most of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fastslow.draft.model.branches import TreeRun
from fastslow.draft.model.chain import ChainRun
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.draft.model.lexicon import Lexicon, SameLexicon
from fastslow.draft.model.lockstep import Lockstep, Run
from fastslow.engine.model.base import Model
from fastslow.engine.types import RequestView, TargetProbs


class ModelDraft(Lockstep):
    """Chains from a model, or trees where there is nothing to sample.

    At temperature 0 the nodes are chosen: the best token after each, or with `width` above 1 a
    tree of the likeliest paths. Else a chain is sampled from the draft model's own law under the
    request's parameters, and that law is handed on as `probs`.

    Args:
        model: the drafting model, on any device; for self-speculation the target, or
            `target.layer_subset(layers)`.
        kv: `OwnKV` for a separate model, `BorrowedKV` for the target itself.
        law: logits -> law under a request's parameters.
        groups: routed groups to run; None = all, 0 = shared experts only. A request that runs
            fewer groups itself drafts with its own number.
        width: most children of a node; 1 = chains.
        lexicon: between the models' tokens, where their vocabularies differ.
        only_best: whether a request's laws are certain and need no logits but the place of the
            largest, which a model may find at less cost; None = of no request.

    Raises:
        ValueError: width below 1; the KV lies on another device than the model.
    """

    def __init__(
        self,
        model: Model,
        kv: DraftKV,
        law: TargetProbs,
        groups: int | None = None,
        width: int = 1,
        lexicon: Lexicon | None = None,
        only_best: Callable[[RequestView], bool] | None = None,
    ) -> None:
        super().__init__(model, kv)
        if width < 1:
            raise ValueError(f"width={width} must be at least 1")
        self._law = law
        self._groups = groups
        self._width = width
        self._lexicon = lexicon or SameLexicon()
        # a lexicon needs the logits of all that both models can say
        self._only_best = only_best if lexicon is None else None

    def release(self, requests: Collection[int]) -> None:
        super().release(requests)
        self._lexicon.release(requests)

    def _begin(self, request: RequestView, most: int) -> Run | None:
        tokens = list(self._lexicon.text(request))
        if not tokens or len(tokens) + most > self._model.config.context:
            return None
        groups = self._groups_for(request)
        text = DraftText(request, tokens, len(tokens) - 1, groups, request.max_len)
        if not self._kv.ready(text, most):
            return None
        branching = self._width > 1 and request.params.temperature == 0
        text.only_best = not branching and self._only_best is not None and self._only_best(request)
        if branching:
            return TreeRun(text, most, self._width, self._law, self._lexicon)
        return ChainRun(text, most, self._law, self._lexicon)

    def _groups_for(self, request: RequestView) -> int | None:
        if self._groups is None or request.groups is None:
            return self._groups
        return min(self._groups, request.groups)
