"""Acceptance for a batch: every request's tree, each by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fastslow.engine.sampling.accept.exact import Rule, block, follow_target, tokenwise
from fastslow.engine.types import AcceptResult, FailedRow, OneHot, Probs, Tree

RngAt = Callable[[int, int], np.random.Generator]
"""(request in the batch, accepted tokens so far) -> the uniform stream of that place."""


def accept(
    trees: Sequence[Tree],
    target: Sequence[Sequence[Probs | FailedRow]],
    rng: RngAt,
    rules: Sequence[Rule],
) -> AcceptResult:
    """Verify every request's tree by its rule: the accepted nodes, root to leaf, and their tokens with one
    more from the target.

    Args:
        trees: one for each request, as are target and rules.
        target: of each request, the probabilities after its last committed token, then after each node. The
            node of a failed row may be accepted; then its token is the last one.
        rng: gives the uniform numbers, where there is something to draw.
        rules: of acceptance.
    """
    result = AcceptResult()
    for b, (tree, target_probs, rule) in enumerate(zip(trees, target, rules, strict=True)):
        if not tree.tokens and isinstance(first := target_probs[0], OneHot):
            result.accepted_nodes.append([])
            result.tokens.append([first.token])
            continue
        failed = {i for i, row in enumerate(target_probs, -1) if isinstance(row, FailedRow)}
        nodes = _reached(tree, failed) if failed else range(len(tree.tokens))
        rows = [target_probs[0], *(target_probs[i + 1] for i in nodes)]
        known = [OneHot(0) if isinstance(row, FailedRow) else row for row in rows]
        found, last = rule(tree.only(nodes), known, partial(rng, b))
        path = [nodes[i] for i in found]
        if path and path[-1] in failed:
            last = int(tree.tokens[path.pop()])
        result.accepted_nodes.append(path)
        result.tokens.append([int(tree.tokens[i]) for i in path] + [last])
    return result


def _reached(tree: Tree, failed: set[int]) -> list[int]:
    """The nodes that do not come after a failed row: their ancestors alone decide, as the rules ask."""
    reached: list[int] = []
    for node, parent in enumerate(tree.parents):
        if parent not in failed and (parent < 0 or parent in reached):
            reached.append(node)
    return reached


RULES: dict[str, Rule] = {"token": tokenwise, "block": block, "reproducible": follow_target}
"""The exact rules that a user may ask for, by name. "lossy-stepwise" is made for each model, since it knows
which tokens end a step: `LossyStepwise`."""
