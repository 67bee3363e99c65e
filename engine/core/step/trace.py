"""Trace of a step: the sources of its tokens, and the entries of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastslow.engine.core.request import Request
from fastslow.engine.core.step.layout import StepLayout
from fastslow.engine.sampling.probs import forced_at
from fastslow.engine.types import ANSWERED, FORCED, TARGET, AcceptResult, OneHot, Tree


def token_sources(
    request: Request, tree: Tree, nodes: Sequence[int], tokens: Sequence[int]
) -> list[str]:
    """Name the sources of the tokens that a step gives a request. The request does not hold them yet.

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
        for i, token in enumerate(tokens):
            forced = forced_at(request, tokens[:i])[0]
            if isinstance(forced, OneHot) and forced.token == token:
                found[i] = FORCED
    return found


def trace_step(
    layout: StepLayout,
    verdicts: Sequence[Sequence[int]],
    result: AcceptResult,
    seconds: tuple[float, float],
) -> None:
    """Note a step in the traces of its requests, before they hold its tokens.

    Args:
        verdicts: the accepted nodes of each tree, also those after the end of the answer.
        result: what is left of them where answers end.
        seconds: of drafting and of the target's forward.
    """
    if all(request.log.trace is None for request, _ in layout.work):
        return
    draft_ms, verify_ms = (round(1000 * x, 3) for x in seconds)
    shared = {"running": len(layout.work), "step_rows": len(layout.rows.tokens)}
    took = {"draft_ms": draft_ms, "verify_ms": verify_ms}
    place = 0
    for item in layout.work:
        request, chunk = item
        if (trace := request.log.trace) is not None:
            own: dict[str, Any] = {"mode": request.mode.name}
            own |= trace.units.running(request.current_groups)
            own |= {"read": chunk, "rows": chunk}
            if item.ready:
                tree = layout.trees[place]
                own["rows"] += len(tree.tokens)
                own |= trace.planned
                own |= _verified(request, tree, verdicts[place], result.tokens[place])
            trace.add(own | shared | took)
        place += item.ready


def _verified(
    request: Request, tree: Tree, accepted: Sequence[int], tokens: Sequence[int]
) -> dict[str, Any]:
    """A trace's facts of a step that gave tokens, which the request does not hold yet."""
    ended, refused = _end(request, tree, accepted, tokens)
    return {
        "drafted": [int(token) for token in tree.tokens],
        "parents": list(tree.parents),
        "by": list(tree.drafter_names or [request.drafter] * len(tree.tokens)),
        "accepted": [int(node) for node in accepted[: len(tokens)]],
        "tokens": [int(token) for token in tokens],
        "sources": token_sources(request, tree, accepted, tokens),
        "ended": ended,
        "refused": refused,
    }


def _end(
    request: Request, tree: Tree, accepted: Sequence[int], tokens: Sequence[int]
) -> tuple[str, list[int]]:
    """Why no more of a draft was accepted, and the drafted tokens that the target rejected there."""
    if request.stopper.reason is not None:
        return request.stopper.reason, []
    if len(tokens) <= len(accepted):
        return "unsure", []  # it changes to another mode
    if not tree.tokens:
        return "no_draft", []
    leaf = accepted[-1] if accepted else -1
    refused = [int(token) for token, parent in zip(tree.tokens, tree.parents) if parent == leaf]
    return ("refused" if refused else "draft_ended"), refused
