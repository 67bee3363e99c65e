"""Acceptance for a batch: every request's tree, each by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fastslow.engine.sampling.accept.block import block
from fastslow.engine.sampling.accept.lossy import LossyTypical
from fastslow.engine.sampling.accept.rule import Rule
from fastslow.engine.sampling.accept.token import follow_target, tokenwise
from fastslow.engine.types import AcceptResult, Draft, Floats, OneHot

RngAt = Callable[[int, int], np.random.Generator]
"""(request in the batch, accepted tokens so far) -> the uniform stream of that place."""


def accept(
    draft: Draft,
    target: Sequence[Floats | OneHot],
    noise: RngAt,
    rules: Sequence[Rule] | None = None,
) -> AcceptResult:
    """Verify every request's tree.

    Args:
        draft: the proposed forest.
        target: N+B laws, f32 [V] or the one token that is certain; request b owns those from
            starts[b]+b on: the first is the law after its last committed token, then one law after
            each of its nodes.
        noise: where the uniform draws come from, where there is something to draw.
        rules: one per request; None = token by token for all.

    Returns:
        Accepted nodes of each request, root to leaf, and their tokens with one more from the target.

    Raises:
        ValueError: there are more or fewer rules than requests.
    """
    requests = len(draft.starts) - 1
    if rules is not None and len(rules) != requests:
        raise ValueError(f"rules has {len(rules)} entries, and the batch has {requests} requests")
    verdict = AcceptResult()
    for b in range(requests):
        tree = draft.tree(b)
        first = int(draft.starts[b]) + b
        rule = tokenwise if rules is None else rules[b]
        path, last = rule(tree, target[first : first + 1 + len(tree.tokens)], partial(noise, b))
        verdict.paths.append(path)
        verdict.tokens.append([int(tree.tokens[i]) for i in path] + [last])
    return verdict


RULES: dict[str, Rule] = {
    "token": tokenwise,
    "block": block,
    "reproducible": follow_target,
    "lossy-typical": LossyTypical(),
}
"""What a user may ask for, by name. All but those that say so are exact. "lossy-stepwise" is made for
each model, since it knows which tokens end a step: `LossyStepwise`."""
