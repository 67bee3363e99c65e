"""Acceptance for a batch: every request's tree, each by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fastslow.engine.sampling.accept.exact import (
    Rule,
    TargetProbsAt,
    block,
    follow_target,
    tokenwise,
)
from fastslow.engine.types import AcceptResult, Tree

RngAt = Callable[[int, int], np.random.Generator]
"""(request in the batch, accepted tokens so far) -> the uniform stream of that place."""


def accept(
    trees: Sequence[Tree], target: Sequence[TargetProbsAt], rng: RngAt, rules: Sequence[Rule]
) -> AcceptResult:
    """Verify every request's tree by its rule: the accepted nodes, root to leaf, and their tokens with one
    more from the target.

    Args:
        trees: one for each request, as are target and rules.
        target: of each request, the probabilities after its last committed token, then after each node.
        rng: gives the uniform numbers, where there is something to draw.
        rules: of acceptance.
    """
    result = AcceptResult()
    for b, (tree, target_probs, rule) in enumerate(zip(trees, target, rules, strict=True)):
        path, last = rule(tree, target_probs, partial(rng, b))
        result.accepted_nodes.append(path)
        result.tokens.append([int(tree.tokens[i]) for i in path] + [last])
    return result


RULES: dict[str, Rule] = {"token": tokenwise, "block": block, "reproducible": follow_target}
"""The exact rules that a user may ask for, by name. "lossy-stepwise" is made for each model, since it knows
which tokens end a step: `LossyStepwise`."""
