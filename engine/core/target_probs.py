"""What a step's outputs say: target probabilities of verified rows, log-probabilities, features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

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
from fastslow.engine.types import AcceptResult, FailedRow, ModelOutput, OneHot, Probs, Tree


def target_probs(
    ready: Sequence[Request], trees: Sequence[Tree], layout: StepLayout, out: ModelOutput
) -> list[list[Probs | FailedRow]]:
    """Of every request: the probabilities after its last token, then after every node of its tree. An error
    at its last token ends the request."""
    found: list[list[Probs | FailedRow]] = []
    best = out.best.tolist()
    for request, tree, first in zip(ready, trees, layout.verify_logits, strict=True):
        rows = list[Probs | FailedRow]()
        probs = scored_probs_at if request.scored else probs_at
        only_best = layout.rows.only_best[first]
        for row, run in enumerate(drafted_runs(tree), first):
            try:
                if not only_best:
                    rows.append(probs(out.logits[row], request, run))
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


def note_logprobs(
    work: Sequence[ScheduledChunk],
    ready: Sequence[Request],
    layout: StepLayout,
    result: AcceptResult,
    logits_MV: torch.Tensor,
) -> None:
    """Add the step's log-probabilities, of prompt tokens and of accepted ones, to the requests."""
    for (request, _), (first, tokens) in zip(work, layout.prompt_logits, strict=True):
        of_prompt, of_answer = request.params.prompt_logprobs or 0, request.params.logprobs or 0
        for i, token in enumerate(tokens):
            prompt = request.wants_prompt_logprobs
            given = logprobs(logits_MV[first + i], token, of_prompt if prompt else of_answer)
            (request.prompt_logprobs if prompt else request.logprobs).append(given)
    for b, request in enumerate(ready):
        if request.params.logprobs is None:
            continue
        for row, token in zip(_rows(layout, result, b), result.tokens[b]):
            request.logprobs.append(logprobs(logits_MV[row], token, request.params.logprobs))


def _rows(layout: StepLayout, result: AcceptResult, b: int) -> list[int]:
    """The rows of logits that the accepted tokens of request b came from."""
    return [layout.verify_logits[b] + i for i in (0, *(n + 1 for n in result.accepted_nodes[b]))]


def cut_where_unsure(
    ready: Sequence[Request], layout: StepLayout, result: AcceptResult, logits_MV: torch.Tensor
) -> list[list[float]]:
    """Cut accepted tokens after the one at which a request's confidence falls.

    Returns:
        For every request, the log-probabilities of the tokens that are left; [] where its confidence
        is not watched.
    """
    found: list[list[float]] = []
    for b, request in enumerate(ready):
        confidence = request.confidence
        if confidence is None or not confidence.watching or request.error is not None:
            found.append([])
            continue
        values: list[float] = []
        for i, (row, token) in enumerate(zip(_rows(layout, result, b), result.tokens[b])):
            forced, mask = forced_at(request, result.tokens[b][:i])
            if isinstance(forced, OneHot):
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
) -> torch.Tensor | None:
    """Features [C, F], request by request: of the last token's row, then of each accepted node's."""
    if out.features is None:
        return None
    accepted = result.accepted_nodes
    if len(accepted) == 1 and accepted[0] == list(range(len(accepted[0]))):
        first = layout.verify_seen[0]  # the usual case: adjacent rows, which need no copy
        return out.features[first : first + len(accepted[0]) + 1]
    rows = [
        first + i
        for first, nodes in zip(layout.verify_seen, accepted, strict=True)
        for i in (0, *(node + 1 for node in nodes))
    ]
    return out.features[torch.tensor(rows, dtype=torch.long)]


def read_features(out: ModelOutput, layout: StepLayout) -> torch.Tensor | None:
    """Features [C, F] of the rows of text that drafters wanted, request by request."""
    if out.features is None or not layout.read_seen:
        return None
    return out.features[torch.tensor(layout.read_seen, dtype=torch.long)]


MASK_THREADS = 2


class MaskMaker:
    """Makes the masks of a step's rows in its threads; each request's grammar keeps them."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def beside(
        self, ready: Sequence[Request], trees: Sequence[Tree]
    ) -> AbstractContextManager[None]:
        """Make them while a block runs. The block must not ask these grammars; at its end the masks are made."""
        work = [(r, tree) for r, tree in zip(ready, trees, strict=True) if r.grammar is not None]
        return self._made(work) if work else nullcontext()

    @contextmanager
    def _made(self, work: Sequence[tuple[Request, Tree]]) -> Iterator[None]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MASK_THREADS, "fastslow-masks")
        jobs = [self._threads.submit(_make, request, tree) for request, tree in work]
        try:
            yield
        finally:
            wait(jobs)


def _make(request: Request, tree: Tree) -> None:
    assert request.grammar is not None
    for run in drafted_runs(tree):
        with suppress(Exception):  # raised again where the row is judged
            request.grammar.at(request.tokens, run)
