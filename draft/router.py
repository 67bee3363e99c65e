"""Every request its own drafter, all in one batch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from fastslow.draft.adaptive import AdaptiveDrafter
from fastslow.draft.several import columns, union
from fastslow.engine.params import Speculation
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree


class DrafterRouter:
    """Hands each request to the drafter that its `speculation` names. Where a thinking budget says
    what comes next, that is the draft, whoever drafts.

    Args:
        drafters: speculation settings -> drafter. The mapping may grow while the engine runs;
            a request whose settings are not in it is not drafted for.
        drafted: told after each proposal: whose settings, seconds, requests that were asked, nodes
            of the largest tree.

    Attributes:
        features: the layers that the drafters of the latest `propose` read, all together.
    """

    def __init__(
        self,
        drafters: Mapping[Speculation, Drafter],
        drafted: Callable[[Speculation, float, int, int], None] | None = None,
    ) -> None:
        self._drafters = drafters
        self._drafted = drafted
        self.features: tuple[int, ...] = ()

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        parts = self._parts(batch)
        for drafter, members in parts:
            started = time.perf_counter()
            told = [_told(batch[b], nodes[b]) for b in members]
            left = [0 if tree.tokens else nodes[b] for tree, b in zip(told, members)]
            own = drafter.propose([batch[b] for b in members], left)
            for i, b in enumerate(members):
                trees[b] = told[i] if told[i].tokens else own[i]
            # an adaptive drafter keeps its own time: it knows whom it asked
            if self._drafted is not None and not isinstance(drafter, AdaptiveDrafter):
                most = max(len(tree.tokens) for tree in own)
                settings = batch[members[0]].speculation
                asked = sum(n > 0 for n in left)
                self._drafted(settings, time.perf_counter() - started, asked, most)
        # Of this step's drafters only; another thread may add one before `commit`.
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

    def release(self, requests: Collection[int]) -> None:
        for drafter in list(self._drafters.values()):  # another thread may add one
            drafter.release(requests)

    def _parts(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, list[int]]]:
        parts: dict[Speculation, list[int]] = defaultdict(list)
        for b, request in enumerate(batch):
            if request.speculation in self._drafters:
                parts[request.speculation].append(b)
        return [(self._drafters[settings], members) for settings, members in parts.items()]


def _told(request: RequestView, nodes: int) -> Tree:
    """What is certain to come next, as far as the nodes go."""
    ahead = () if request.thinking is None else request.thinking.ahead(request.tokens)[:nodes]
    return Tree.chain(ahead, scores=[1.0] * len(ahead))
