"""What sampled trees are judged by: a law's weight on a token, and what a refusal leaves of it."""

from __future__ import annotations

import numpy as np

from fastslow.engine.noise import draw
from fastslow.engine.types import Certain, Floats


def weight(law: Floats | Certain, token: int) -> float:
    """The probability of a token."""
    if isinstance(law, Certain):
        return float(token == law.token)
    return float(law[token])


def residual(law: Floats | Certain, mass: float, q_V: Floats) -> tuple[Floats | Certain, float]:
    """What is left of `mass * law` where q_V has taken its part: max(mass * law - q, 0).

    Args:
        law: f32 [V], or its one token.
        mass: how much of the law there is to share, 0 to 1.
        q_V: f32 [V], the law that the refused node was sampled from.

    Returns:
        What is left as a law, and its mass. At mass 0 the law is of no use.
    """
    if isinstance(law, Certain):
        return law, max(mass - float(q_V[law.token]), 0.0)
    left_V = law - q_V if mass == 1.0 else law * np.float32(mass) - q_V
    np.maximum(left_V, 0.0, out=left_V)
    rest = float(left_V.sum(dtype=np.float64))
    if rest > 0.0:
        left_V /= np.float32(rest)
    return left_V, rest


def pick(law: Floats | Certain, draws: np.random.Generator) -> int:
    """One token of a law."""
    return law.token if isinstance(law, Certain) else draw(law, draws)
