"""Drafts of a head while they grow: the trees of EAGLE-2 (arXiv 2406.16858), and chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from fastslow.draft.base import DraftChain
from fastslow.draft.head.state import RequestVocab
from fastslow.draft.merge import likeliest_first
from fastslow.engine.sampling.grammars.grammar import GrammarError
from fastslow.engine.sampling.probs import probs_at
from fastslow.engine.types import Floats, OneHot, RequestView, Tree

TWICE = math.log(2)
NO_MASS = -1e30  # a logit: no probability at any temperature, and still a finite number


T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class TreeSource(Protocol[T_contra]):
    """Grows trees: a head, or an MTP layer. T: what it holds of a draft's rows."""

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Per text f32 [rows, D + E] in the order of its vocabulary's `ids`, from hidden states [R, H]."""

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        kvs: Sequence[T_contra],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """See `DraftHead.step`."""


class GrowingTree(Generic[T]):
    """The tree of a text, at most `nodes` nodes, while it grows from `root` [H], the head's output at the text's last
    row. Nodes less likely than `min_score` (0..1), with all before them, are left out. It grows no further where a child
    would probably be less likely than `min_child`.

    scores: log-probability of each node and all before it. frontier: nodes that get children next. rows: node -> its
    row among the draft's, for nodes that got children; `room` at most, where it is given.
    """

    def __init__(
        self,
        kv: T,
        vocab: RequestVocab,
        root: Tensor,
        nodes: int,
        min_score: float = 0.0,
        room: int | None = None,
        min_child: float = 0.0,
    ) -> None:
        self._room = room
        self._min_child = math.log(min_child) if min_child > 0 else -math.inf
        self._level = 0
        self._min_score = math.log(min_score) if min_score > 0 else -math.inf
        self.kv = kv
        self.vocab = vocab
        self.root = root
        self.nodes = nodes
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.frontier: list[int] = [-1]
        self.rows: dict[int, int] = {-1: -1}

    def expand(self, logits: Tensor, width: int) -> None:
        """The `width` likeliest children of each node of the frontier; logits [frontier, D + E]."""
        first = len(self.tokens)
        log_q = torch.log_softmax(logits, -1)
        values, places = torch.topk(log_q, min(width, log_q.shape[-1]))
        ids = self.vocab.ids[places].tolist()
        for parent, scores, tokens in zip(self.frontier, values.tolist(), ids):
            base = self.scores[parent] if parent >= 0 else 0.0
            self.scores += [base + score for score in scores]
            self.tokens += tokens
            self.parents += [parent] * len(tokens)
        fresh = range(first, len(self.tokens))
        # A node that is not among the best so far has no child that is.
        bar = sorted(self.scores, reverse=True)[min(self.nodes, len(self.scores)) - 1]
        # A level costs a pass over the head, and a child has little more than half of its parent's chance.
        bar = max(bar, min(self._min_score + TWICE, self._min_score / 2))
        self._level += 1  # a child's chance falls as those before it did
        bar = max(bar, self._min_child * self._level / (self._level + 1))
        if len(self.scores) >= self.nodes:  # nor has the last of the best
            bar = math.nextafter(bar, math.inf)
        best = sorted(fresh, key=lambda node: -self.scores[node])[:width]
        if self._room is not None:
            best = best[: self._room + 1 - len(self.rows)]
        self.frontier = sorted(node for node in best if self.scores[node] >= bar)

    def take_rows(self) -> list[int]:
        """Number the rows of the frontier; gives the row of each node's parent."""
        parents = [self.rows[self.parents[node]] for node in self.frontier]
        for node in self.frontier:
            self.rows[node] = len(self.rows) - 1
        return parents

    def tree(self) -> Tree:
        """The likeliest nodes within the budget; a parent is never less likely than its child."""
        likely = (n for n, score in enumerate(self.scores) if score >= self._min_score)
        order = likeliest_first(self.parents, self.scores, likely, self.nodes)
        place = {node: i for i, node in enumerate(order)} | {-1: -1}
        return Tree(
            [self.tokens[node] for node in order],
            [place[self.parents[node]] for node in order],
            scores=[math.exp(self.scores[node]) for node in order],
        )


def grow_trees(
    head: TreeSource[T], trees: Sequence[GrowingTree[T]], width: int, depth: int
) -> list[Tree]:
    """Grow all trees in lockstep, one small step of the head a level, `depth` levels at most. `width` nodes
    of a level get children, and each gets `width`."""
    active = list(trees)
    hidden = torch.stack([tree.root for tree in active]) if active else torch.empty(0)
    for level in range(1, depth + 1):
        if not active:
            break
        fronts = [tree.frontier for tree in active]
        sizes = [len(front) for front in fronts]
        logits = head.logits(hidden, [tree.vocab for tree in active], sizes)
        for tree, logits_FD in zip(active, logits):
            tree.expand(logits_FD, width)
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
            kvs = [tree.kv for tree in active]
            hidden = head.step(hidden[rows], after, kvs, [tree.take_rows() for tree in active])
    return [tree.tree() for tree in trees]


class HeadChain(Generic[T]):
    """The chain of one request, at most `nodes` tokens, while it is drafted."""

    def __init__(self, request: RequestView, state: T, nodes: int) -> None:
        self.request = request
        self.state = state
        self.nodes = nodes
        self._chain = DraftChain(request)
        self.drafted = self._chain.tokens
        self._scores: list[float] = []  # of chosen tokens: the probability of the chain so far

    def extend(self, logits_V: Tensor, known: Floats) -> None:
        """Draft one more token, from f32 [V] with NO_MASS for tokens that cannot be drafted; `known` [D + E] are
        the other logits. The chain ends where no probabilities can be made."""
        try:
            probs = probs_at(logits_V, self.request, self.drafted)
        except (FloatingPointError, GrammarError) as error:  # its neighbours draft on
            logger.warning("a draft of {} tokens ends: {}", len(self.drafted), error)
            self.nodes = len(self.drafted)
            return
        token = self._chain.add(probs)
        if isinstance(probs, OneHot):
            logit = float(logits_V[token])
            forced = logit <= NO_MASS  # by a thinking budget: the head cannot draft this token
            sure = 1.0 if forced else 1 / float(np.exp(known - logit).sum())
            self._scores.append(min(1.0, sure) * (self._scores[-1] if self._scores else 1.0))

    def tree(self) -> Tree:
        return self._chain.tree(self._scores or None)
