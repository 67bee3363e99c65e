"""Reading of a step's outputs: target probabilities of verified rows, log-probabilities, features, traces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastslow.engine.core.layout import StepLayout
from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.sampling.probs import (
    forced_at,
    log_probability,
    logprobs,
    one_hot,
    probs_at,
    scored_probs_at,
)
from fastslow.engine.types import (
    ANSWERED,
    FORCED,
    TARGET,
    AcceptResult,
    FailedRow,
    Features,
    ModelOutput,
    OneHot,
    Probs,
    Tree,
)


def target_probs(layout: StepLayout, out: ModelOutput) -> list[list[Probs | FailedRow]]:
    """Of every request: the probabilities after its last token, then after every node of its tree. An error
    at its last token ends the request."""
    found: list[list[Probs | FailedRow]] = []
    best, only_best = out.best.tolist(), layout.rows.only_best.tolist()
    each = zip(layout.ready, layout.trees, layout.verify_logits, strict=True)
    for request, tree, first in each:
        rows = list[Probs | FailedRow]()
        probs = scored_probs_at if request.scored else probs_at
        for row, run in enumerate(drafted_runs(tree), first):
            try:
                if not only_best[first]:
                    rows.append(probs(out.logits[row], request, run, best[row]))
                elif best[row] < 0:
                    raise FloatingPointError("the model's logits are not finite numbers")
                else:
                    rows.append(one_hot(best[row], request, run))
            except Exception as error:  # noqa: BLE001 - perhaps no answer comes to this row
                if not run:
                    request.fail(error)
                rows.append(FailedRow(error) if run else OneHot(0))
        found.append(rows)
    return found


def drafted_runs(tree: Tree) -> list[list[int]]:
    """Drafted tokens up to every verified row: none for the last committed token, then for every
    node the tokens from the root to it."""
    drafted: list[list[int]] = [[]]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        drafted.append([*drafted[parent + 1], token])
    return drafted


def note_logprobs(layout: StepLayout, result: AcceptResult, logits_MV: torch.Tensor) -> None:
    """Add the step's log-probabilities, of prompt tokens and of accepted ones, to the requests."""
    for (request, _), (first, tokens) in zip(layout.work, layout.prompt_logits, strict=True):
        for i, token in enumerate(tokens):
            prompt, params = request.wants_prompt_logprobs, request.params
            most = (params.prompt_logprobs if prompt else params.logprobs) or 0
            given = logprobs(logits_MV[first + i], token, most)
            (request.log.prompt_logprobs if prompt else request.log.logprobs).append(given)
    for b, request in enumerate(layout.ready):
        if request.params.logprobs is None:
            continue
        for row, token in zip(layout.accepted(result, b), result.tokens[b]):
            request.log.logprobs.append(logprobs(logits_MV[row], token, request.params.logprobs))


def cut_where_unsure(
    layout: StepLayout, result: AcceptResult, logits_MV: torch.Tensor
) -> list[list[float]]:
    """Cut accepted tokens after the one at which a request's confidence falls.

    Returns, for every request, the log-probabilities of the tokens that are left; [] where its
    confidence is not watched.
    """
    found: list[list[float]] = []
    for b, request in enumerate(layout.ready):
        if (confidence := request.doubt) is None or request.error is not None:
            found.append([])
            continue
        values: list[float] = []
        for i, (row, token) in enumerate(zip(layout.accepted(result, b), result.tokens[b])):
            forced, mask = forced_at(request, result.tokens[b][:i])
            if isinstance(forced, OneHot) and forced.token == token:
                values.append(0.0)  # a token that a budget or a grammar forced counts as sure
                continue
            logits_V = logits_MV[row] if mask is None else mask.applied(logits_MV[row])
            values.append(log_probability(logits_V, token))
        size = confidence.keeps(values)
        result.cut(b, size)
        found.append(values[:size])
    return found


def committed_features(
    out: ModelOutput, layout: StepLayout, result: AcceptResult
) -> Features | None:
    """Features [C, F], request by request: of the last token's row, then of each accepted node's."""
    if out.seen is None:
        return None
    accepted = result.accepted_nodes
    if len(accepted) == 1 and accepted[0] == list(range(len(accepted[0]))):
        first = layout.verify_seen[0]  # the usual case: adjacent rows, which need no copy
        return out.seen[first : first + len(accepted[0]) + 1]
    rows = [
        first + i
        for first, nodes in zip(layout.verify_seen, accepted, strict=True)
        for i in (0, *(node + 1 for node in nodes))
    ]
    return out.seen[rows]


def read_features(out: ModelOutput, layout: StepLayout) -> Features | None:
    """Features [C, F] of the rows of text that drafters wanted, request by request."""
    if out.seen is None or not layout.read_seen:
        return None
    return out.seen[layout.read_seen]


def left_out(
    late: Collection[Request], layout: StepLayout, result: AcceptResult
) -> tuple[StepLayout, AcceptResult]:
    """A step as if these requests were not ready: of their text, it read all but the last token."""
    kept = [b for b, request in enumerate(layout.ready) if request not in late]
    items = [
        ScheduledChunk(request, chunk - (request in late and chunk == request.pending))
        for request, chunk in layout.work
    ]
    layout = replace(
        layout,
        work=items,
        ready=[layout.ready[b] for b in kept],
        trees=[layout.trees[b] for b in kept],
        verify_logits=[layout.verify_logits[b] for b in kept],
        verify_seen=[layout.verify_seen[b] for b in kept],
    )
    if result.tokens:
        result = AcceptResult(
            [result.accepted_nodes[b] for b in kept], [result.tokens[b] for b in kept]
        )
    return layout, result


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
    draft_ms, verify_ms = (round(1000 * x, 3) for x in seconds)
    shared = {"running": len(layout.work), "step_rows": len(layout.rows.tokens)}
    took = {"draft_ms": draft_ms, "verify_ms": verify_ms}
    place = 0
    for item in layout.work:
        request, chunk = item
        if (trace := request.log.trace) is not None:
            own: dict[str, Any] = {"mode": request.mode}
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
