"""Probes in a step: what they ask of its forward, and what comes of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.engine.core.request import Request
from fastslow.engine.core.step.layout import StepLayout
from fastslow.engine.model.base import layer_columns
from fastslow.engine.sampling.probs import best_token, log_probability
from fastslow.engine.types import AcceptResult, Features, ModelOutput, Tree


def with_probed(ready: Sequence[Request], layers: tuple[int, ...]) -> tuple[int, ...]:
    """Add the layers that prompts' probes look at; all ascending."""
    probes = {request.probe.layer for request in ready if request.probe is not None}
    return tuple(sorted({*layers, *probes})) if probes else layers


def see_prompts(
    layout: StepLayout, features: Features | None, layers: tuple[int, ...], wanted: tuple[int, ...]
) -> Features | None:
    """Show each prompt's probe the features of the prompt's last token.

    features: of all `layers`. Returns those [S, F] of the layers that drafters `wanted`.
    """
    if features is None:
        return None
    for request, row in zip(layout.ready, layout.verify_features, strict=True):
        if (probe := request.probe) is None or request.error is not None:
            continue
        seen = layer_columns(features[row : row + 1], layers, (probe.layer,))
        probe.see(torch.as_tensor(seen)[0])
        if probe.taken and request.escalation is not None:
            request.escalation.target = request.escalation.targets[probe.taken - 1]
        else:
            request.log.notes.append(str(probe))
    return layer_columns(features, layers, wanted) if wanted else None


def ask_probes(layout: StepLayout, out: ModelOutput) -> set[Request]:
    """Give probes of answers the likeliest tokens of their rows. Returns the requests whose probe is not done: they
    take no token in this step."""
    waiting: set[Request] = set()
    each = zip(layout.ready, layout.trees, layout.verify_logits, strict=True)
    for request, tree, verified in each:
        probe, thinking = request.answer_probe, request.thinking
        if probe is None or thinking is None:
            continue
        first = verified + 1 + len(tree.tokens)
        rows = range(first, first + len(probe.draft) + 1)
        request.spec_stats.probe_rows += len(probe.rows)
        best, logprobs = [int(out.best[row]) for row in rows], list[float]()
        if not layout.rows.only_best[verified]:
            best = [best_token(out.logits[row]) if n < 0 else n for row, n in zip(rows, best)]
            some = zip(rows, best) if probe.sure else ()
            logprobs = [log_probability(out.logits[row], token) for row, token in some]
        if not probe.take(best, logprobs):
            waiting.add(request)
            continue
        thinking.note_probe(request.tokens, probe.settled)
        if probe.settled and request.grammar is None:
            request.known.ahead = [*thinking.ahead(request.tokens), *probe.answer]
    return waiting


def keep_ahead(
    waiting: Collection[Request], ready: Sequence[Request], result: AcceptResult
) -> None:
    """Keep the tokens that the target gave to requests whose probe is not done: they are their next drafts."""
    for b, request in enumerate(ready):
        if request in waiting:
            request.known.ahead = result.tokens[b]
            request.spec_stats.add(request.drafter, Tree(), [])
