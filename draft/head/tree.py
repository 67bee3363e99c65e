"""Trees of the likeliest paths: grown depth by depth, then cut to the budget.

EAGLE-2, arXiv 2406.16858.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastslow.draft.head.context import Context
from fastslow.draft.head.head import Head
from fastslow.engine.types import Tree


class Growing:
    """One request's tree while it grows.

    Attributes:
        tokens, parents, scores: of all nodes so far; a score is the path's log-probability.
        frontier: nodes that go on.
        rows: node -> its row in the context's draft, for nodes that went on.
    """

    def __init__(self, context: Context, nodes: int) -> None:
        self.context = context
        self.nodes = nodes
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.frontier: list[int] = [-1]
        self.rows: dict[int, int] = {-1: -1}

    def sprout(self, log_q: Tensor, ids: Tensor, width: int) -> None:
        """Children of the frontier: log_q, ids [len(frontier), w], the likeliest tokens of each."""
        first = len(self.tokens)
        for parent, scores, tokens in zip(self.frontier, log_q.tolist(), ids.tolist()):
            base = self.scores[parent] if parent >= 0 else 0.0
            self.scores += [base + score for score in scores]
            self.tokens += tokens
            self.parents += [parent] * len(tokens)
        fresh = range(first, len(self.tokens))
        # A node that is not among the best so far has no child that is.
        bar = sorted(self.scores, reverse=True)[min(self.nodes, len(self.scores)) - 1]
        best = sorted(fresh, key=lambda node: -self.scores[node])[:width]
        self.frontier = sorted(node for node in best if self.scores[node] >= bar)

    def tree(self) -> Tree:
        """The likeliest nodes within the budget; a parent is never less likely than its child."""
        order = sorted(range(len(self.tokens)), key=lambda node: (-self.scores[node], node))
        kept = sorted(order[: self.nodes])
        place = {node: i for i, node in enumerate(kept)} | {-1: -1}
        return Tree(
            [self.tokens[node] for node in kept], [place[self.parents[node]] for node in kept]
        )


def grow_trees(
    head: Head,
    roots: Sequence[tuple[Context, Tensor]],
    nodes: Sequence[int],
    width: int,
    depth: int,
) -> list[Tree]:
    """A tree for each request, all in lockstep, one small step of the head a depth.

    Args:
        roots: per request its context, and the head's output [H] at its last row.
        nodes: per request, most nodes.
        width: nodes that go on from each depth, and children of each.
        depth: of the deepest node.
    """
    trees = [Growing(context, most) for (context, _), most in zip(roots, nodes)]
    active = trees
    hidden = torch.stack([row for _, row in roots]) if roots else torch.empty(0)
    for level in range(depth):
        if not active:
            break
        log_q = torch.log_softmax(head.logits(hidden), -1)
        best = torch.topk(log_q, min(width, log_q.shape[-1]))
        at = 0
        before = [len(tree.frontier) for tree in active]
        starts = []
        olds = [list(tree.frontier) for tree in active]
        for tree, size in zip(active, before):
            rows = slice(at, at + size)
            tree.sprout(best.values[rows], head.tokens[best.indices[rows]], width)
            starts.append(at)
            at += size
        if level + 1 == depth:
            break
        picked = []
        after: list[int] = []
        parents: list[list[int]] = []
        going: list[Growing] = []
        for tree, start, old in zip(active, starts, olds):
            if not tree.frontier:
                continue
            going.append(tree)
            picked += [start + old.index(tree.parents[node]) for node in tree.frontier]
            after += [tree.tokens[node] for node in tree.frontier]
            parents.append([tree.rows[tree.parents[node]] for node in tree.frontier])
            for node in tree.frontier:
                tree.rows[node] = len(tree.rows) - 1
        active = going
        if active:
            hidden = head.step(hidden[picked], after, [tree.context for tree in active], parents)
    return [tree.tree() for tree in trees]
