"""Trees of the likeliest paths: grown depth by depth, then cut to the budget.

EAGLE-2, arXiv 2406.16858.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from fastslow.draft.head.context import Context, DraftHead
from fastslow.draft.head.state import RequestVocab, State
from fastslow.draft.merge import likeliest_first
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import (
    Floats,
    OneHot,
    RequestView,
    TargetProbs,
    Tree,
)


class Growing:
    """One request's tree while it grows.

    Args:
        context, words: the request's.
        root: [H], the head's output at its last row.
        nodes: most nodes.
        least: nodes less likely than this, with all before them, are left out; 0..1.

    Attributes:
        tokens, parents, scores: of all nodes so far; a score is the path's log-probability.
        frontier: nodes that go on.
        rows: node -> its row in the context's draft, for nodes that went on.
    """

    def __init__(
        self, context: Context, words: RequestVocab, root: Tensor, nodes: int, least: float = 0.0
    ) -> None:
        self._least = math.log(least) if least > 0 else -math.inf
        self.context = context
        self.words = words
        self.root = root
        self.nodes = nodes
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.frontier: list[int] = [-1]
        self.rows: dict[int, int] = {-1: -1}

    def sprout(self, logits: Tensor, width: int) -> None:
        """Children of the frontier, the `width` likeliest of each, from logits [frontier, D + E]."""
        first = len(self.tokens)
        log_q = torch.log_softmax(logits, -1)
        values, places = torch.topk(log_q, min(width, log_q.shape[-1]))
        ids = self.words.ids[places].tolist()
        for parent, scores, tokens in zip(self.frontier, values.tolist(), ids):
            base = self.scores[parent] if parent >= 0 else 0.0
            self.scores += [base + score for score in scores]
            self.tokens += tokens
            self.parents += [parent] * len(tokens)
        fresh = range(first, len(self.tokens))
        # A node that is not among the best so far has no child that is.
        bar = sorted(self.scores, reverse=True)[min(self.nodes, len(self.scores)) - 1]
        bar = max(bar, self._least)
        best = sorted(fresh, key=lambda node: -self.scores[node])[:width]
        self.frontier = sorted(node for node in best if self.scores[node] >= bar)

    def follow(self) -> list[int]:
        """The draft row that each node of the frontier follows; they become rows themselves."""
        parents = [self.rows[self.parents[node]] for node in self.frontier]
        for node in self.frontier:
            self.rows[node] = len(self.rows) - 1
        return parents

    def tree(self) -> Tree:
        """The likeliest nodes within the budget; a parent is never less likely than its child."""
        likely = (n for n, score in enumerate(self.scores) if score >= self._least)
        best = sorted(likely, key=lambda node: (-self.scores[node], node))[: self.nodes]
        kept = likeliest_first(self.parents, self.scores, best)
        place = {node: i for i, node in enumerate(kept)} | {-1: -1}
        return Tree(
            [self.tokens[node] for node in kept],
            [place[self.parents[node]] for node in kept],
            scores=[math.exp(self.scores[node]) for node in kept],
        )


def grow_trees(head: DraftHead, trees: Sequence[Growing], width: int, depth: int) -> list[Tree]:
    """All trees in lockstep, one small step of the head a depth.

    Args:
        trees: one for each request, nothing grown yet.
        width: nodes that go on from each depth, and children of each.
        depth: of the deepest node.
    """
    active = list(trees)
    hidden = torch.stack([tree.root for tree in active]) if active else torch.empty(0)
    for level in range(1, depth + 1):
        if not active:
            break
        fronts = [tree.frontier for tree in active]
        sizes = [len(front) for front in fronts]
        logits = head.logits(hidden, [tree.words for tree in active], sizes)
        for tree, logits_FD in zip(active, logits):
            tree.sprout(logits_FD, width)
        starts = [0, *accumulate(sizes)]
        going = [i for i, tree in enumerate(active) if tree.frontier and level < depth]
        rows = [
            starts[i] + fronts[i].index(active[i].parents[node])
            for i in going
            for node in active[i].frontier
        ]
        active = [active[i] for i in going]
        if active:
            after = [tree.tokens[node] for tree in active for node in tree.frontier]
            contexts = [tree.context for tree in active]
            hidden = head.step(hidden[rows], after, contexts, [tree.follow() for tree in active])
    return [tree.tree() for tree in trees]


NOWHERE = -1e30  # a logit: no mass at any temperature, and still a finite number


class HeadChain:
    """One request's chain while it is drafted."""

    def __init__(self, request: RequestView, state: State, most: int) -> None:
        self.request = request
        self.state = state
        self.most = most
        # new in each step: a rule may have looked at what a number behind a refused token gave
        self._draws = stream(request.seed, len(request.tokens), Purpose.DRAFT)
        self.drafted: list[int] = []
        self._laws: list[Floats] = []
        self._scores: list[float] = []  # of chosen tokens: the head's probability of the path

    def extend(self, logits_V: Tensor, known: Floats, law: TargetProbs) -> None:
        """One more token; the chain ends where there is no law. `known`: the logits with mass."""
        try:
            decided = law(logits_V, self.request, self.drafted)
        except FloatingPointError as error:  # its neighbours' drafts go on
            logger.warning("a draft of {} tokens ends: {}", len(self.drafted), error)
            self.most = len(self.drafted)
            return
        if isinstance(decided, OneHot):
            self.drafted.append(decided.token)
            logit = float(logits_V[decided.token])
            forced = logit <= NOWHERE  # by a thinking budget: the head has no word for it
            sure = 1.0 if forced else 1 / float(np.exp(known - logit).sum())
            self._scores.append(min(1.0, sure) * (self._scores[-1] if self._scores else 1.0))
            return
        if self.request.reproducible:  # with the numbers that the target's tokens are drawn with
            place = len(self.request.tokens) + len(self.drafted)
            self.drafted.append(draw(decided, stream(self.request.seed, place, Purpose.ACCEPT)))
            return
        self.drafted.append(draw(decided, self._draws))
        self._laws.append(decided)

    def tree(self) -> Tree:
        probs = np.stack(self._laws) if self._laws else None
        return Tree.chain(self.drafted, probs, self._scores or None)
