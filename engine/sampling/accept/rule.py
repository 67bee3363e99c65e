"""What a verification rule is, and what sampled trees are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.sampling.rng import draw
from fastslow.engine.types import Floats, OneHot, Tree

TargetProbsAt = Sequence[Floats | OneHot]
"""n+1 laws of a tree of n nodes: after the last committed token, then after each node."""

Place = Callable[[int], np.random.Generator]
"""Accepted tokens so far -> the uniform stream of that place in the request's text."""

Rule = Callable[[Tree, TargetProbsAt, Place], tuple[list[int], int]]
"""(tree, its laws, where draws come from) -> accepted nodes, root to leaf, and one more token.

A rule is exact if these tokens, and tokens of the target's laws after them, are jointly of the
target's law, whatever was drafted. For *sampled* trees that asks of the drafter:

- `probs[i]` is the law of node i given the text, its ancestors, and its earlier siblings with all
  that hangs off them. What hangs where may depend on those nodes, never on the node's own token.
- The draws of a step are new ones. A rule that looks at a whole branch before it decides (`block`)
  has learned something of every token of it, so a uniform number behind a refused token must not
  come back in the next step's draft. A stream addressed by the *first* place that the step drafts
  is new in each step; streams addressed by each token's own place are not.
"""


def weight(law: Floats | OneHot, token: int) -> float:
    """The probability of a token."""
    if isinstance(law, OneHot):
        return float(token == law.token)
    return float(law[token])


def residual(law: Floats | OneHot, mass: float, q_V: Floats) -> tuple[Floats | OneHot, float]:
    """What is left of `mass * law` where q_V has taken its part: max(mass * law - q, 0).

    Args:
        law: f32 [V], or its one token.
        mass: how much of the law there is to share, 0 to 1.
        q_V: f32 [V], the law that the refused node was sampled from.

    Returns:
        What is left as a law, and its mass. At mass 0 the law is of no use.
    """
    if isinstance(law, OneHot):
        return law, max(mass - float(q_V[law.token]), 0.0)
    left_V = law - q_V if mass == 1.0 else law * np.float32(mass) - q_V
    np.maximum(left_V, 0.0, out=left_V)
    rest = float(left_V.sum(dtype=np.float64))
    if rest > 0.0:
        left_V /= np.float32(rest)
    return left_V, rest


def pick(law: Floats | OneHot, draws: np.random.Generator) -> int:
    """One token of a law."""
    return law.token if isinstance(law, OneHot) else draw(law, draws)
