"""Several drafters, asked in turn: the first that has something to say speaks, per request."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.draft.columns import columns, show, union, wanted
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree


class First:
    """`First(a, b)`: b is asked only for the requests where a proposes nothing.

    Args:
        drafters: in order of preference.

    Raises:
        ValueError: without a drafter.

    Attributes:
        features: the layers that the drafters read, all together.
    """

    def __init__(self, *drafters: Drafter) -> None:
        if not drafters:
            raise ValueError("First() needs at least one drafter")
        self._drafters = drafters
        self.features = union(drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        for drafter in self._drafters:
            left = [0 if tree.tokens else n for tree, n in zip(trees, nodes)]
            own = drafter.propose(batch, left)
            trees = [tree if tree.tokens else own[b] for b, tree in enumerate(trees)]
        return trees

    def commit(
        self, batch: Sequence[RequestView], verdict: AcceptResult, features: torch.Tensor | None
    ) -> None:
        for drafter in self._drafters:
            own = columns(features, self.features, drafter.features)
            drafter.commit(batch, verdict, own)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return wanted(self._drafters, batch, rows)[0]

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        show(self._drafters, batch, rows, features, self.features)

    def release(self, requests: Collection[int]) -> None:
        for drafter in self._drafters:
            drafter.release(requests)
