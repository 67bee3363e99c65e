"""Typical acceptance: lossy, and named so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastslow.engine.accept.follow import token_at
from fastslow.engine.accept.residual import weight
from fastslow.engine.accept.rule import Laws, Place
from fastslow.engine.types import Certain, Floats, Tree


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

    def __call__(self, tree: Tree, laws: Laws, place: Place) -> tuple[list[int], int]:
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


def _entropy(law: Floats | Certain) -> float:
    """In nats."""
    if isinstance(law, Certain):
        return 0.0
    likely = law[law > 0.0]
    return -float((likely * np.log(likely)).sum(dtype=np.float64))
