"""Block verification: a branch is accepted as a whole, from its leaf to the root."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from fastslow.engine.sampling.accept.rule import (
    Accepted,
    Place,
    TargetProbsAt,
    pick,
    residual,
    weight,
)
from fastslow.engine.sampling.accept.token import follow_target
from fastslow.engine.types import Floats, Tree


def block(tree: Tree, target_probs: TargetProbsAt, place: Place) -> Accepted:
    """Accept the deepest node that the target can pay for, looking at leaves first.

    On chains this is block verification (Sun et al. 2025, arXiv 2403.10444), which keeps at least
    as many tokens on average as the token-by-token rule; on trees, traversal verification (Weng et
    al. 2025, arXiv 2505.12398). A node's token may be too likely in the draft and a later one too
    unlikely; over the branch they cancel. A chosen tree goes by `follow_target`.

    Why it is exact. A node owes *mass* m: it and all nodes below it must be accepted with probability
    m in all, followed by a token with the target's probabilities p. The root owes 1. Let a child x be
    sampled from q, and owe min(1, m p(x)/q(x)): over all x it emits min(q, m p). So max(m p - q, 0) is
    still owed, of mass s. The walk comes so far only where the child and all nodes below it were
    refused: with probability 1 - m + s. The node now owes mass s / (1 - m + s), with the probabilities
    max(m p - q, 0) / s, to its other children in the same way, and in the end itself: it is accepted
    with the mass it owes, and the last token is drawn from what p has become.
    """
    if tree.probs is None:
        return follow_target(tree, target_probs, place)
    found = _Traversal(tree, tree.probs, target_probs, place(0)).emit(-1, 1.0)
    assert found is not None, "the root owes mass 1 to the end"
    return found


class _Traversal:
    """One tree's verification; all draws come from the stream of the step's first place."""

    def __init__(
        self, tree: Tree, q: Floats, target_probs: TargetProbsAt, draws: np.random.Generator
    ) -> None:
        self._tokens = tree.tokens
        self._q = q
        self._target_probs = target_probs
        self._draws = draws
        self._children: dict[int, list[int]] = defaultdict(list)
        for i, parent in enumerate(tree.parents):
            self._children[parent].append(i)

    def emit(self, node: int, mass: float) -> Accepted | None:
        """Accepted nodes below this one and the last token, with probability `mass`; else None."""
        probs = self._target_probs[node + 1]
        for i in self._children.get(node, ()):
            if not mass > 0.0:
                return None
            x, q_V = self._tokens[i], self._q[i]
            owed, drafted = mass * weight(probs, x), float(q_V[x])
            below = self.emit(i, min(1.0, owed / drafted) if owed > 0.0 else 0.0)
            if below is not None:
                return [i, *below[0]], below[1]
            left, rest = residual(probs, mass, q_V)
            came = 1.0 - mass + rest
            if came > 0.0:
                probs, mass = left, rest / came
            elif owed > 0.0:  # the refusal was a rounding, as in the token-by-token rule
                return [i], pick(self._target_probs[i + 1], self._draws)
        if mass < 1.0 and not self._draws.random() < mass:
            return None
        return [], pick(probs, self._draws)
