"""Reading of a step's outputs: target probabilities of verified rows, log-probabilities, features, traces."""

from __future__ import annotations

import torch

from fastslow.engine.core.step.layout import StepLayout
from fastslow.engine.sampling.probs import (
    logprobs,
    one_hot,
    probs_at,
    scored_probs_at,
)
from fastslow.engine.types import (
    AcceptResult,
    FailedRow,
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
        rows: list[Probs | FailedRow] = []
        for row, run in enumerate(drafted_runs(tree), first):
            try:
                if not only_best[first]:
                    probs = scored_probs_at if request.scored else probs_at
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
