"""What an acceptance rule is, and what rules for sampled trees share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.sampling.rng import draw
from fastslow.engine.types import Floats, OneHot, Probs, Tree

TargetProbsAt = Sequence[Probs]
"""Of a tree of n nodes, n+1 entries: after the last committed token, then after each node."""

Place = Callable[[int], np.random.Generator]
"""Accepted tokens so far -> the uniform stream of that place in the request's text."""

Accepted = tuple[list[int], int]
"""Accepted nodes, root to leaf, and one more token, from the target."""

Rule = Callable[[Tree, TargetProbsAt, Place], Accepted]
"""(tree, target probabilities, where draws come from) -> what is accepted.

A rule is exact if these tokens, and later tokens drawn from the target, have the joint probability
that the target gives them, whatever was drafted. For *sampled* trees that asks of the drafter:

- `tree.probs[i]` are the probabilities of node i given the text, its ancestors, and its earlier
  siblings with all nodes below them. The shape of the tree may depend on those nodes, never on the
  node's own token.
- The draws of a step are new ones. A rule that looks at a whole branch before it decides (`block`)
  has learned something of every token of it, so the number that a refused token was drawn by must
  not come back in the next step's draft. A stream addressed by the *first* place that the step
  drafts is new in every step; streams addressed by every token's own place are not.
"""


def weight(probs: Probs, token: int) -> float:
    """The probability of a token."""
    if isinstance(probs, OneHot):
        return float(token == probs.token)
    return float(probs[token])


def residual(probs: Probs, mass: float, q_V: Floats) -> tuple[Probs, float]:
    """What is left of `mass * probs` after q_V: max(mass * probs - q, 0).

    Args:
        probs: f32 [V], or one token.
        mass: 0 to 1.
        q_V: f32 [V], the probabilities that the refused node was sampled from.

    Returns:
        What is left, divided by its sum, and that sum. Where the sum is 0 the first is of no use.
    """
    if isinstance(probs, OneHot):
        return probs, max(mass - float(q_V[probs.token]), 0.0)
    left_V = probs - q_V if mass == 1.0 else probs * np.float32(mass) - q_V
    np.maximum(left_V, 0.0, out=left_V)
    rest = float(left_V.sum(dtype=np.float64))
    if rest > 0.0:
        left_V /= np.float32(rest)
    return left_V, rest


def pick(probs: Probs, draws: np.random.Generator) -> int:
    """Draw one token."""
    return probs.token if isinstance(probs, OneHot) else draw(probs, draws)
