"""Drafting from hidden states: what heads and MTP layers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from fastslow.draft.base import BaseDrafter
from fastslow.draft.head.tree import HeadChain
from fastslow.engine.backends.cpu.draft_head import TreeLimits
from fastslow.engine.sampling.probs import only_best
from fastslow.engine.types import MarginalValue, RequestView, Tree

MIN_SCORE = 0.05  # a less likely node hardly pays for its row, even where rows cost next to nothing
S = TypeVar("S")


class Growth(NamedTuple):
    """How far drafts grow.

    width: 1 drafts chains: at temperature 0 chosen nodes, else sampled from the head's own probabilities under the
    request's parameters. More: trees of chosen nodes; `width` nodes of a depth get children, and the likeliest within
    the budget stay (EAGLE-2). marginal_value: of a token and of a row in the batch's step; None = rows cost nothing.
    depth: of trees at most; a chain is as long as its budget.
    """

    width: int = 1
    marginal_value: Callable[[Sequence[RequestView]], MarginalValue] | None = None
    depth: int = 6


CHAINS = Growth()


class GrowingDraft(BaseDrafter, ABC, Generic[S]):
    """Drafts trees or chains that grow level by level, all requests of the batch in lockstep. S: what is held of a
    request's text.

    Where the engine chooses the length, a tree ends where its nodes become less likely than what
    their rows take: such nodes would be cut, and each level takes a pass over the head.
    """

    def __init__(self, growth: Growth = CHAINS) -> None:
        self._width, self._marginal_value, self._depth = growth

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        known = [
            (b, request, state)
            for b, (request, most) in enumerate(zip(batch, nodes))
            if most > 0 and (state := self._known(request, most)) is not None
        ]
        if not known:
            return trees
        grown = [
            nodes[b] if self._width > 1 or only_best(request) else 0 for b, request, _ in known
        ]
        bar = self._min_score(batch)
        min_scores = [bar if r.speculation.nodes is None else 0.0 for _, r, _ in known]
        depth = self._depth if self._width > 1 else max(grown)
        limits = TreeLimits(grown, self._width, depth, min_scores)
        made = self._grow([state for _, _, state in known], limits)
        chains: list[tuple[int, HeadChain[S]]] = []
        for (b, request, state), size, tree in zip(known, grown, made):
            trees[b] = tree
            if not size:
                chains.append((b, HeadChain(request, state, nodes[b])))
        self._extend([chain for _, chain in chains])
        for b, chain in chains:
            trees[b] = chain.tree()
        return trees

    @abstractmethod
    def _known(self, request: RequestView, nodes: int) -> S | None:
        """Return the state that a draft of at most `nodes` nodes grows from; None = there is none."""

    @abstractmethod
    def _grow(self, states: Sequence[S], limits: TreeLimits) -> list[Tree]:
        """The tree of each; chains begin anew."""

    @abstractmethod
    def _append(self, chain: HeadChain[S]) -> None:
        """Add a token to a chain."""

    @abstractmethod
    def _advance(self, states: Sequence[S], tokens: Sequence[int]) -> None:
        """Run the token that each chain got last."""

    def _min_score(self, batch: Sequence[RequestView]) -> float:
        if self._marginal_value is None:
            return MIN_SCORE
        value = self._marginal_value(batch)
        return min(max(MIN_SCORE, value.row / value.token), 1.0)

    def _extend(self, chains: Sequence[HeadChain[S]]) -> None:
        """All chains in lockstep, one small step a token."""
        active = [chain for chain in chains if chain.nodes > 0]
        while active:
            for chain in active:
                self._append(chain)
            active = [chain for chain in active if len(chain.drafted) < chain.nodes]
            if active:
                states = [chain.state for chain in active]
                self._advance(states, [chain.drafted[-1] for chain in active])
