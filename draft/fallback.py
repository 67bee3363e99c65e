"""Several drafters, asked in turn: the first that has something to say speaks, per request."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.draft.several import SeveralDrafters
from fastslow.engine.types import Drafter, RequestView, Tree


class FallbackDrafter(SeveralDrafters):
    """`FallbackDrafter(a, b)`: b is asked only for the requests where a proposes nothing.

    Args:
        drafters: in order of preference, at least one.
    """

    def __init__(self, *drafters: Drafter) -> None:
        super().__init__(drafters)

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        for drafter in self.drafters:
            left = [0 if tree.tokens else n for tree, n in zip(trees, nodes)]
            own = drafter.propose(batch, left)
            trees = [tree if tree.tokens else own[b] for b, tree in enumerate(trees)]
        return trees
