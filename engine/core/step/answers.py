"""Truncation of accepted tokens: at the end of an answer, where its confidence falls, where tokens are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastslow.engine.core.request import Request
from fastslow.engine.core.step.layout import StepLayout
from fastslow.engine.sampling.probs import forced_at, log_probability, would_end
from fastslow.engine.types import AcceptResult, ModelOutput, OneHot


def keep_answered(ready: Sequence[Request], result: AcceptResult) -> None:
    """Take the next token of each resumed answer from its call, whatever the target says."""
    for b, request in enumerate(ready):
        if (token := request.next_answered) is not None:
            result.accepted_nodes[b], result.tokens[b] = [], [token]


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


def cut_where_over(layout: StepLayout, result: AcceptResult, out: ModelOutput) -> None:
    """Cut accepted tokens where the answer ends."""
    ended = _cut_at_ends(layout, result, out)
    for b, request in enumerate(layout.ready):
        if request.error is not None:
            request.stopper.finish("error")
        run, whole_at, circles_at = result.tokens[b], None, None
        if request.error is None and request.thinking is not None:
            run = run[: request.thinking.asks_at(request.tokens, run)]
            circles_at = request.thinking.circles_at(request.tokens, run)
        if request.error is None and request.grammar is not None:
            whole_at = request.grammar.whole_at(request.tokens, run)
        kept = 0 if request.error is not None else request.stopper.scan(run[:circles_at], whole_at)
        if kept == circles_at:
            request.stopper.finish("loop")
        result.cut(b, kept)
        if request.thinking is not None and 0 < ended[b] == kept:
            request.thinking.close_at(len(request.tokens) - request.prompt_length + kept, "model")


def _cut_at_ends(layout: StepLayout, result: AcceptResult, out: ModelOutput) -> list[int]:
    """Cut accepted tokens after one that begins a closing tag where the model would rather have ended its answer
    inside the thought. Returns how many tokens are left of each request that was cut; 0 for the others."""
    found = [0] * len(layout.ready)
    for b, request in enumerate(layout.ready):
        thinking, run = request.thinking, result.tokens[b]
        if thinking is None or request.error is not None:
            continue
        for place in thinking.tags_begun(request.tokens, run):
            row, before = layout.accepted(result, b)[place], run[:place]
            if layout.rows.only_best[row]:
                ended = int(out.best[row]) in thinking.no_end(request.tokens, before)[0]
            else:
                ended = would_end(out.logits[row], request, before, run[place])
            if ended:
                found[b] = place + 1
                result.cut(b, found[b])
                break
    return found
