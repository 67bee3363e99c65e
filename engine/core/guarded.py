"""Calls of what a request brings itself: its policy and its rule. Where one raises, this request alone ends."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.core.request import Request
from fastslow.engine.sampling.accept.exact import Accepted, RngAt, Rule, TargetProbsAt
from fastslow.engine.token_mask import CERTAIN
from fastslow.engine.types import Tree


def survival_of(request: Request, tree: Tree) -> Sequence[float] | None:
    try:
        chances = request.policy.survival(tree)
        if chances is None or tree.drafter_ids is None or CERTAIN not in tree.drafter_ids:
            return chances
        chances = list(chances)
        for node, (parent, by) in enumerate(zip(tree.parents, tree.drafter_ids)):
            if by == CERTAIN:
                chances[node] = 1.0 if parent < 0 else chances[parent]
        return chances
    except Exception as error:  # noqa: BLE001 - its own settings: the others go on
        request.fail(error)
        return None


def guarded_rule(request: Request) -> Rule:
    """The request's rule; where that raises, this request alone ends."""

    def rule(tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
        try:
            return request.rule(tree, target_probs, place)
        except Exception as error:  # noqa: BLE001 - its own settings: the others go on
            request.fail(error)
            return [], 0

    return rule


def record(request: Request, tree: Tree, nodes: Sequence[int]) -> None:
    try:
        request.policy.record(tree, nodes)
    except Exception as error:  # noqa: BLE001 - its own settings: the others go on
        request.fail(error)
        request.stopper.finish("error")
