"""Hands each request of a batch to its own drafter."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from fastslow.draft.grammar_filter import certain_chain, filter_by_grammar
from fastslow.draft.prediction import PredictionDraft
from fastslow.draft.several import AdaptiveDrafter, SeveralDrafters, counted, on_each, union
from fastslow.engine.params import Speculation
from fastslow.engine.types import DraftCall, Drafter, RequestView, Tree

WATCHED = 2  # steps without a draft for which a drafter still sees features; then it rests


class DrafterRouter(SeveralDrafters):
    """Hands each request to the drafter that its `speculation` names. Tokens forced by a thinking budget, and those
    that the caller predicted, are drafted without asking the drafter, and so are those of a grammar where they fill
    the draft. Other drafts under a grammar are cut where it forbids a token.

    A drafter that was asked for no draft in the latest steps rests: no features are computed for it, until it is asked
    again. A head then goes on behind a gap, with its next row.

    drafters: speculation settings -> drafter. The mapping may change while the engine runs; a request whose settings
    are not in it is not drafted for. drafted: called after each proposal; a depth is the nodes of the largest tree.
    """

    def __init__(
        self,
        drafters: Mapping[Speculation, Drafter],
        drafted: Callable[[DraftCall], None] | None = None,
    ) -> None:
        super().__init__(())
        self._drafters = drafters
        self._drafted = drafted
        self._predictions = PredictionDraft()
        self._unasked: dict[int, int] = {}  # by the drafter's identity: steps since it was asked

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        parts = self._parts(batch)
        watching, unasked = list[Drafter](), dict[int, int]()
        for drafter, members in parts:
            asked = any(nodes[b] for b in members)
            unasked[id(drafter)] = 0 if asked else self._unasked.get(id(drafter), 0) + 1
            if unasked[id(drafter)] <= WATCHED:
                watching.append(drafter)
            started = time.perf_counter()
            known = [self._known(batch[b], nodes[b]) for b in members]
            left = [0 if tree.tokens else nodes[b] for tree, b in zip(known, members)]
            own = counted(drafter.propose([batch[b] for b in members], left), len(members))
            for i, b in enumerate(members):
                tree = known[i] if known[i].tokens else own[i]
                trees[b] = filter_by_grammar(tree, batch[b], nodes[b])
            if self._drafted is not None:
                most = max(len(tree.tokens) for tree in own)
                keys = [batch[b].memory_key for b, n in zip(members, left) if n > 0]
                settings = batch[members[0]].speculation
                adaptive = isinstance(drafter, AdaptiveDrafter)
                took = time.perf_counter() - started
                self._drafted(DraftCall(settings, took, len(keys), most, {*keys}, adaptive))
        # Only this step's drafters: another thread may add one before `commit`.
        self.features, self._unasked = union(watching), unasked
        return trees

    def forget(self) -> None:
        on_each(list(self._drafters.values()), lambda drafter: drafter.forget())

    def release(self, requests: Collection[int]) -> None:
        drafters = list(self._drafters.values())  # another thread may add one
        on_each([self._predictions, *drafters], lambda drafter: drafter.release(requests))

    def _known(self, request: RequestView, nodes: int) -> Tree:
        """Return the tree that needs no drafter: tokens that are certain, else the request's prediction."""
        forced = _forced(request, nodes)
        if forced.tokens or not request.prediction:
            return forced
        return self._predictions.propose([request], [nodes])[0]

    def _parts(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, Sequence[int]]]:
        parts: dict[int, tuple[Drafter, list[int]]] = {}
        for b, request in enumerate(batch):
            drafter = self._drafters.get(request.speculation)
            if drafter is not None:  # another thread may take one out
                parts.setdefault(id(drafter), (drafter, []))[1].append(b)
        return [*parts.values()]


def _forced(request: RequestView, nodes: int) -> Tree:
    """The next tokens that are certain, where the drafter need not be asked."""
    chain = certain_chain(request, nodes)
    return Tree() if chain.drafter_ids is not None and len(chain.tokens) < nodes else chain
