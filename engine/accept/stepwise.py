"""Stepwise acceptance: lossy, and named so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastslow.engine.accept.follow import token_at
from fastslow.engine.accept.residual import weight
from fastslow.engine.accept.rule import Laws, Place
from fastslow.engine.types import Certain, Floats, Tree


class _Node(NamedTuple):
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

    def __call__(self, tree: Tree, laws: Laws, place: Place) -> tuple[list[int], int]:
        path = self._kept(tree, laws)
        here = path[-1] if path else -1
        token = token_at(laws[here + 1], place, len(path))
        for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):
            if parent == here and x == token:
                path.append(i)
                here, token = i, token_at(laws[i + 1], place, len(path))
        return path, token

    def _kept(self, tree: Tree, laws: Laws) -> list[int]:
        """The longest path of kept steps; of several the first."""
        inner = set(tree.parents)
        nodes = [_Node(0.0, 0, True)]
        depths, best, deepest = [0], -1, 0
        for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):
            above = nodes[parent + 1]
            p = probability(laws[parent + 1], x)
            total = above.total + math.log(p) if p > 0.0 else -math.inf
            node = _Node(total, above.size + 1, above.alive)
            depths.append(depths[parent + 1] + 1)
            if x in self.ends or i not in inner:
                kept = node.alive and math.exp(node.total / node.size) >= self.least
                node = _Node(0.0, 0, kept)
                if kept and depths[-1] > deepest:
                    best, deepest = i, depths[-1]
            nodes.append(node)
        path: list[int] = []
        while best >= 0:
            path.append(best)
            best = tree.parents[best]
        return path[::-1]


def probability(law: Floats | Certain, token: int) -> float:
    """What the target gives a token; at temperature 0 the law behind its choice says so."""
    if isinstance(law, Certain) and law.probs is not None:
        return float(law.probs[token])
    return weight(law, token)
