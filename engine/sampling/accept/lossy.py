"""Stepwise acceptance: lossy, and named so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastslow.engine.sampling.accept.exact import (
    Accepted,
    RngAt,
    TargetProbsAt,
    follow_target,
    weight,
)
from fastslow.engine.types import OneHot, Probs, Tree


class _StepNode(NamedTuple):
    """Place of a node in its step: alive until the step is refused."""

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
        return follow_target(tree, target_probs, place, self._kept(tree, target_probs))

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
        path: list[int] = []
        while best >= 0:
            path.append(best)
            best = tree.parents[best]
        return path[::-1]


def probability(probs: Probs, token: int) -> float:
    """Return the probability that the target gives a token; at temperature 0 the one it would give at temperature 1."""
    if isinstance(probs, OneHot) and probs.probs is not None:
        return float(probs.probs[token])
    return weight(probs, token)
