"""Several drafters, asked in turn: the first that has something to say speaks, per request."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.engine.types import Draft, Drafter, RequestView, Tree, Verdict


class First:
    """`First(a, b)`: b is asked only for the requests where a proposes nothing.

    Args:
        drafters: in order of preference, none of which reads features.

    Raises:
        ValueError: without a drafter, or with one that reads features.
    """

    features: tuple[int, ...] = ()

    def __init__(self, *drafters: Drafter) -> None:
        if not drafters:
            raise ValueError("First() needs at least one drafter")
        if any(drafter.features for drafter in drafters):
            raise ValueError("First() cannot hold a drafter that reads features")
        self._drafters = drafters

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        trees = [Tree()] * len(batch)
        for drafter in self._drafters:
            left = [0 if tree.tokens else n for tree, n in zip(trees, nodes)]
            draft = drafter.propose(batch, left)
            trees = [tree if tree.tokens else draft.tree(b) for b, tree in enumerate(trees)]
        return Draft.of(trees)

    def commit(
        self, batch: Sequence[RequestView], verdict: Verdict, features: torch.Tensor | None
    ) -> None:
        for drafter in self._drafters:
            drafter.commit(batch, verdict, features)

    def release(self, requests: Collection[int]) -> None:
        for drafter in self._drafters:
            drafter.release(requests)
