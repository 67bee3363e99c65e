"""What a step's logits say: the law at every verified row, and the log-probabilities asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastslow.engine.core.layout import StepLayout
from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.sampling.probs import (
    log_probability,
    logprobs,
    one_hot,
    probs_at,
    scored_probs_at,
)
from fastslow.engine.types import AcceptResult, Floats, ModelOutput, OneHot, Tree


def target_probs(
    ready: Sequence[Request], trees: Sequence[Tree], layout: StepLayout, out: ModelOutput
) -> list[list[Floats | OneHot]]:
    """Each request's target laws: after its last token, then after each node of its tree."""
    found: list[list[Floats | OneHot]] = []
    best = out.best.tolist()
    for request, tree, first in zip(ready, trees, layout.verify_logits, strict=True):
        paths = _paths(tree)
        if layout.rows.only_best[first]:
            tokens = best[first : first + len(paths)]
            if min(tokens) < 0:
                request.error = FloatingPointError("the model's logits are not finite numbers")
            found.append([one_hot(max(x, 0), request, path) for x, path in zip(tokens, paths)])
            continue
        rows, law = out.logits[first:], scored_probs_at if request.scored else probs_at
        try:
            found.append([law(rows[i], request, path) for i, path in enumerate(paths)])
        except FloatingPointError as error:
            request.error = error  # this request ends; its neighbours go on
            found.append([OneHot(0)] * len(paths))
    return found


def _paths(tree: Tree) -> list[list[int]]:
    """Drafted tokens before each law: none at the first, then root to node, the node's own last."""
    paths: list[list[int]] = [[]]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append([*paths[parent + 1], token])
    return paths


def note_logprobs(
    work: Sequence[ScheduledChunk],
    ready: Sequence[Request],
    layout: StepLayout,
    verdict: AcceptResult,
    logits_MV: torch.Tensor,
) -> None:
    """Keep the log-probabilities of prompt tokens just read, and of tokens just accepted."""
    for (request, _), (first, tokens) in zip(work, layout.prompt_logits, strict=True):
        most = request.params.prompt_logprobs or 0
        for i, token in enumerate(tokens):
            request.prompt_logprobs.append(logprobs(logits_MV[first + i], token, most))
    for b, request in enumerate(ready):
        if request.params.logprobs is None:
            continue
        places = [0, *(i + 1 for i in verdict.paths[b])]
        for place, token in zip(places, verdict.tokens[b]):
            row = logits_MV[layout.verify_logits[b] + place]
            request.logprobs.append(logprobs(row, token, request.params.logprobs))


def cut_where_unsure(
    ready: Sequence[Request], layout: StepLayout, verdict: AcceptResult, logits_MV: torch.Tensor
) -> list[list[float]]:
    """Cut runs behind the token at which a request's confidence falls, before anything is committed.

    Returns:
        For each request, the log-probabilities of what is left of its run; [] where nobody watches.
    """
    found: list[list[float]] = []
    for b, request in enumerate(ready):
        confidence = request.confidence
        if confidence is None or not confidence.watching or request.error is not None:
            found.append([])
            continue
        places = [0, *(node + 1 for node in verdict.paths[b])]
        rows = (logits_MV[layout.verify_logits[b] + place] for place in places)
        said = [log_probability(row, x) for row, x in zip(rows, verdict.tokens[b])]
        if request.thinking is not None:  # a token that a budget forced says nothing of doubts
            for i in range(len(said)):
                law = request.thinking.at(request.tokens, verdict.tokens[b][:i])
                said[i] = 0.0 if isinstance(law, OneHot) else said[i]
        kept = confidence.keeps(said)
        verdict.tokens[b] = verdict.tokens[b][:kept]
        verdict.paths[b] = verdict.paths[b][: kept - 1]
        found.append(said[:kept])
    return found


def committed_features(
    out: ModelOutput, layout: StepLayout, verdict: AcceptResult
) -> torch.Tensor | None:
    """Features [C, F], request by request: of the last token's row, then of each accepted node's."""
    if out.features is None:
        return None
    if len(layout.verify_seen) == 1 and verdict.paths[0] == list(range(len(verdict.paths[0]))):
        first = layout.verify_seen[0]  # the usual case: rows that follow each other
        return out.features[first : first + len(verdict.paths[0]) + 1]
    rows = [
        first + place
        for first, path in zip(layout.verify_seen, verdict.paths, strict=True)
        for place in (0, *(node + 1 for node in path))
    ]
    return out.features[torch.tensor(rows, dtype=torch.long)]


def read_features(out: ModelOutput, layout: StepLayout) -> torch.Tensor | None:
    """Features [C, F] of the rows of text that somebody wanted to see, request by request."""
    if out.features is None or not layout.read_seen:
        return None
    return out.features[torch.tensor(layout.read_seen, dtype=torch.long)]
