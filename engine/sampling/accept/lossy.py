"""Typical and stepwise acceptance: lossy, and named so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastslow.engine.sampling.accept.rule import Place, TargetProbsAt, weight
from fastslow.engine.sampling.accept.token import token_at
from fastslow.engine.types import Floats, OneHot, Tree


@dataclass(frozen=True, slots=True)
class LossyTypical:
    """A rule that keeps any drafted token which is not unlikely. NOT exact: answers follow another
    law than the target's, nearer to its likely tokens. (At temperature 0 it is exact.)

    Node x is kept if p(x) > min(epsilon, delta * exp(-entropy(p))) and its parent is kept: where
    the target is unsure, less is asked of a token. The deepest kept node ends the accepted path,
    the likeliest of them if there are several; one token of the law after it follows. Only the
    request's own tree and laws are looked at (Cai et al. 2024, arXiv 2401.10774).

    Args:
        epsilon: a probability above this is always enough; above 0, below 1.
        delta: share of exp(-entropy) that is enough; above 0, at most 1.

    Raises:
        ValueError: one of them is outside its limits.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < 1.0:
            raise ValueError(f"epsilon={self.epsilon} must be above 0 and below 1")
        if not 0.0 < self.delta <= 1.0:
            raise ValueError(f"delta={self.delta} must be above 0 and at most 1")

    def __call__(self, tree: Tree, laws: TargetProbsAt, place: Place) -> tuple[list[int], int]:
        bars: dict[int, float] = {}  # what is asked of a node's children, where that is unclear
        ranks: list[tuple[int, float] | None] = [(0, 0.0)]  # root, nodes: depth and log-likelihood
        for x, parent in zip(tree.tokens, tree.parents):
            above, p = ranks[parent + 1], weight(laws[parent + 1], x)
            if above is not None and p <= self.epsilon and parent not in bars:
                bars[parent] = self.delta * math.exp(-_entropy(laws[parent + 1]))
            if above is None or (p <= self.epsilon and p <= bars[parent]):
                ranks.append(None)
            else:
                ranks.append((above[0] + 1, above[1] + math.log(p)))
        _, last = max((rank, -i) for i, rank in enumerate(ranks) if rank is not None)
        path: list[int] = []
        node = -last - 1
        while node >= 0:
            path.append(node)
            node = tree.parents[node]
        return path[::-1], token_at(laws[-last], place, len(path))


def _entropy(law: Floats | OneHot) -> float:
    """In nats."""
    if isinstance(law, OneHot):
        return 0.0
    likely = law[law > 0.0]
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
    before it are kept. From the first refused step on the target follows its own tokens: it rewrites
    the step. With drafter "self" the fast mode writes and the deep mode judges, one pass a draft.
    After SpecReason (Pan et al. 2025, arXiv 2504.07891), where a rating by the target decides; here
    its probabilities do, which cost nothing. Only the request's own tree and laws are looked at.

    Args:
        ends: tokens that end a step, such as all that hold a newline.
        least: above 0, at most 1.

    Raises:
        ValueError: `least` is outside its limits.
    """

    ends: frozenset[int]
    least: float = 0.6

    def __post_init__(self) -> None:
        if not 0.0 < self.least <= 1.0:
            raise ValueError(f"least={self.least} must be above 0 and at most 1")

    def __call__(self, tree: Tree, laws: TargetProbsAt, place: Place) -> tuple[list[int], int]:
        path = self._kept(tree, laws)
        here = path[-1] if path else -1
        token = token_at(laws[here + 1], place, len(path))
        for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):
            if parent == here and x == token:
                path.append(i)
                here, token = i, token_at(laws[i + 1], place, len(path))
        return path, token

    def _kept(self, tree: Tree, laws: TargetProbsAt) -> list[int]:
        """The longest path of kept steps; of several the first."""
        inner = set(tree.parents)
        nodes = [_StepNode(0.0, 0, True)]
        best, deepest = -1, 0
        for i, (x, parent, depth) in enumerate(zip(tree.tokens, tree.parents, tree.depths)):
            above = nodes[parent + 1]
            p = probability(laws[parent + 1], x)
            total = above.total + math.log(p) if p > 0.0 else -math.inf
            node = _StepNode(total, above.size + 1, above.alive)
            if x in self.ends or i not in inner:
                kept = node.alive and math.exp(node.total / node.size) >= self.least
                node = _StepNode(0.0, 0, kept)
                if kept and depth > deepest:
                    best, deepest = i, depth
            nodes.append(node)
        path: list[int] = []
        while best >= 0:
            path.append(best)
            best = tree.parents[best]
        return path[::-1]


def probability(law: Floats | OneHot, token: int) -> float:
    """What the target gives a token; at temperature 0 the law behind its choice says so."""
    if isinstance(law, OneHot) and law.probs is not None:
        return float(law.probs[token])
    return weight(law, token)
