"""Hands each request of a batch to its own drafter."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from fastslow.draft.grammar_filter import certain_chain, filter_by_grammar
from fastslow.draft.prediction import PredictionDraft
from fastslow.draft.several import AdaptiveDrafter, columns, counted, on_each, union
from fastslow.engine.params import Speculation
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree


class DrafterRouter:
    """Hands each request to the drafter that its `speculation` names. Tokens forced by a thinking budget, and those
    that the caller predicted, are drafted without asking the drafter, and so are those of a grammar where they fill
    the draft. Other drafts under a grammar are cut where it forbids a token.

    drafters: speculation settings -> drafter. The mapping may change while the engine runs; a request whose settings
    are not in it is not drafted for. drafted: called after each proposal with the settings, seconds, number of
    requests asked, and nodes of the largest tree.
    """

    def __init__(
        self,
        drafters: Mapping[Speculation, Drafter],
        drafted: Callable[[Speculation, float, int, int], None] | None = None,
    ) -> None:
        self._drafters = drafters
        self._drafted = drafted
        self._predictions = PredictionDraft()
        self.features: tuple[int, ...] = ()

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        parts = self._parts(batch)
        for drafter, members in parts:
            started = time.perf_counter()
            known = [self._known(batch[b], nodes[b]) for b in members]
            left = [0 if tree.tokens else nodes[b] for tree, b in zip(known, members)]
            own = counted(drafter.propose([batch[b] for b in members], left), len(members))
            for i, b in enumerate(members):
                tree = known[i] if known[i].tokens else own[i]
                trees[b] = filter_by_grammar(tree, batch[b], nodes[b])
            # an adaptive drafter measures each of its drafters itself
            if self._drafted is not None and not isinstance(drafter, AdaptiveDrafter):
                most = max(len(tree.tokens) for tree in own)
                settings = batch[members[0]].speculation
                asked = sum(n > 0 for n in left)
                self._drafted(settings, time.perf_counter() - started, asked, most)
        # Only this step's drafters: another thread may add one before `commit`.
        self.features = union(drafter for drafter, _ in parts)
        return trees

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        counts = [len(path) + 1 for path in result.accepted_nodes]
        rows = None if features is None else torch.split(features, counts)
        for drafter, members in self._parts(batch):
            part = AcceptResult(
                [result.accepted_nodes[b] for b in members], [result.tokens[b] for b in members]
            )
            own = None
            if rows is not None and drafter.features:
                own = columns(
                    torch.cat([rows[b] for b in members]), self.features, drafter.features
                )
            drafter.commit([batch[b] for b in members], part, own)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        found = [range(0)] * len(batch)
        asking: list[Drafter] = []
        for drafter, members in self._parts(batch):
            some = drafter.wants([batch[b] for b in members], [rows[b] for b in members])
            for b, own in zip(members, some, strict=True):
                found[b] = own
            if any(some):
                asking.append(drafter)
        self.features = tuple(sorted({*self.features, *union(asking)}))
        return found

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        parts = torch.split(features, [len(some) for some in rows])
        for drafter, members in self._parts(batch):
            some = [rows[b] for b in members]
            if any(some):
                whole = torch.cat([parts[b] for b in members])
                own = columns(whole, self.features, drafter.features)
                if own is not None:
                    drafter.read([batch[b] for b in members], some, own)

    def forget(self) -> None:
        on_each(list(self._drafters.values()), lambda drafter: drafter.forget())

    def release(self, requests: Collection[int]) -> None:
        drafters = list(self._drafters.values())  # another thread may add one
        on_each([self._predictions, *drafters], lambda drafter: drafter.release(requests))

    def _known(self, request: RequestView, nodes: int) -> Tree:
        """What is drafted without a drafter."""
        forced = _forced(request, nodes)
        if forced.tokens or not request.prediction:
            return forced
        return self._predictions.propose([request], [nodes])[0]

    def _parts(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, list[int]]]:
        parts: dict[Speculation, tuple[Drafter, list[int]]] = {}
        for b, request in enumerate(batch):
            drafter = self._drafters.get(request.speculation)
            if drafter is not None:  # another thread may take one out
                parts.setdefault(request.speculation, (drafter, []))[1].append(b)
        return list(parts.values())


def _forced(request: RequestView, nodes: int) -> Tree:
    """The next tokens that are certain, where the drafter need not be asked."""
    chain = certain_chain(request, nodes)
    return Tree() if chain.drafter_ids is not None and len(chain.tokens) < nodes else chain
