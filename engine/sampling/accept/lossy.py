"""Typical and stepwise acceptance: lossy, and named so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastslow.engine.sampling.accept.exact import Accepted, RngAt, TargetProbsAt, token_at, weight
from fastslow.engine.types import OneHot, Probs, Tree


@dataclass(frozen=True, slots=True)
class LossyTypical:
    """A rule that keeps any drafted token which is not unlikely. NOT exact: answers have other
    probabilities than the target's, nearer to its likely tokens. (At temperature 0 it is exact.)

    Node x is kept if p(x) > min(epsilon, delta * exp(-entropy(p))) and its parent is kept: where
    the target is unsure, less is asked of a token. The accepted tokens end at the deepest kept node,
    the likeliest of them if there are several; one token of the target comes after it. Only the
    request's own tree and probabilities matter (Cai et al. 2024, arXiv 2401.10774).
    """

    epsilon: float = 0.09  # a probability above this is always enough
    delta: float = 0.3  # share of exp(-entropy) that is enough

    def __call__(self, tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
        bars: dict[int, float] = {}  # what is asked of a node's children, where that is unclear
        ranks: list[tuple[int, float] | None] = [(0, 0.0)]  # root, nodes: depth and log-likelihood
        for x, parent in zip(tree.tokens, tree.parents):
            above, p = ranks[parent + 1], weight(target_probs[parent + 1], x)
            if above is not None and p <= self.epsilon and parent not in bars:
                bars[parent] = self.delta * math.exp(-_entropy(target_probs[parent + 1]))
            if above is None or (p <= self.epsilon and p <= bars[parent]):
                ranks.append(None)
            else:
                ranks.append((above[0] + 1, above[1] + math.log(p)))
        _, last = max((rank, -i) for i, rank in enumerate(ranks) if rank is not None)
        path = _branch(tree, -last - 1)
        return path, token_at(target_probs[-last], place, len(path))


def _branch(tree: Tree, node: int) -> list[int]:
    """The nodes from the root to this one; [] for -1."""
    nodes: list[int] = []
    while node >= 0:
        nodes.append(node)
        node = tree.parents[node]
    return nodes[::-1]


def _entropy(probs: Probs) -> float:
    """In nats."""
    if isinstance(probs, OneHot):
        return 0.0
    likely = probs[probs > 0.0]
    return -float((likely * np.log(likely)).sum(dtype=np.float64))


class _StepNode(NamedTuple):
    """Where a node stands in its step: alive until the step is refused."""

    total: float  # log-probability of the step so far
    size: int  # tokens of it
    alive: bool


@dataclass(frozen=True, slots=True)
class LossyStepwise:
    """A rule that keeps or rewrites whole steps of reasoning. NOT exact: a step stays as the drafter
    wrote it wherever the target finds it likely enough as a whole, also where it would have chosen
    other words.

    A step is a run of drafted tokens up to one of `ends`, or to where the draft ends. It is kept if
    the geometric mean of the target's probabilities of its tokens is at least `least`, and all steps
    before it are kept. From the first rejected step on the target rewrites the step with its own
    tokens. With drafter "self" the fast mode writes and the deep mode checks, one forward a draft.
    After SpecReason (Pan et al. 2025, arXiv 2504.07891), where the target gives a rating; its
    probabilities, used instead, cost nothing. Only the request's own tree and probabilities matter.
    """

    ends: frozenset[int]  # such as all tokens that hold a newline
    least: float = 0.6  # above 0, at most 1

    def __call__(self, tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
        path = self._kept(tree, target_probs)
        node = path[-1] if path else -1
        token = token_at(target_probs[node + 1], place, len(path))
        for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):
            if parent == node and x == token:
                path.append(i)
                node, token = i, token_at(target_probs[i + 1], place, len(path))
        return path, token

    def _kept(self, tree: Tree, target_probs: TargetProbsAt) -> list[int]:
        """The longest path of kept steps; of several the first."""
        inner = set(tree.parents)
        nodes = [_StepNode(0.0, 0, True)]
        best, deepest = -1, 0
        for i, (x, parent, depth) in enumerate(zip(tree.tokens, tree.parents, tree.depths)):
            above = nodes[parent + 1]
            p = probability(target_probs[parent + 1], x)
            total = above.total + math.log(p) if p > 0.0 else -math.inf
            node = _StepNode(total, above.size + 1, above.alive)
            if x in self.ends or i not in inner:
                kept = node.alive and math.exp(node.total / node.size) >= self.least
                node = _StepNode(0.0, 0, kept)
                if kept and depth > deepest:
                    best, deepest = i, depth
            nodes.append(node)
        return _branch(tree, best)


def probability(probs: Probs, token: int) -> float:
    """What the target gives a token; at temperature 0 what it would give at temperature 1."""
    if isinstance(probs, OneHot) and probs.probs is not None:
        return float(probs.probs[token])
    return weight(probs, token)
