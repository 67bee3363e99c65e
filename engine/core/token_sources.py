"""Where each token of an answer came from."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.core.request import Request
from fastslow.engine.sampling.probs import forced_at
from fastslow.engine.types import ANSWERED, FORCED, TARGET, OneHot, Tree


def token_sources(
    request: Request, tree: Tree, nodes: Sequence[int], tokens: Sequence[int]
) -> list[str]:
    """Of the tokens that a step gives a request, which does not hold them yet.

    nodes: those that the target accepted, root to leaf, also if the answer ends inside the run.
    """
    if request.next_answered is not None:
        return [ANSWERED] * len(tokens)
    drafted = nodes[: len(tokens)]
    if tree.drafter_names is None:
        found = [request.drafter] * len(drafted)
    else:
        found = [tree.drafter_names[node] for node in drafted]
    if len(found) < len(tokens):
        found.append(TARGET)
    bounded = request.thinking is not None and request.thinking.bounded
    if bounded or request.grammar is not None:
        for i in range(len(tokens)):
            if isinstance(forced_at(request, tokens[:i])[0], OneHot):
                found[i] = FORCED
    return found
