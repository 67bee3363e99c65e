"""A step's work and drafts, laid out as rows; and which logits belong to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.request import Request
from fastslow.engine.sampling import only_best
from fastslow.engine.scheduler import Work
from fastslow.engine.types import Draft, Rows, Segment, Tree


@dataclass(slots=True)
class Layout:
    """Rows for the model. Logits come back in this order: prompt rows, then verified rows, by request.

    Attributes:
        rows: what the model runs.
        prompt_logits: per work item, index of its first prompt logits and the tokens they predict.
        verify_logits: per ready request, index of the logits after its last committed token; those
            after its draft nodes follow.
    """

    rows: Rows
    prompt_logits: list[tuple[int, list[int]]]
    verify_logits: list[int]


def lay_rows(work: Sequence[Work], draft: Draft, kv: KVCache) -> Layout:
    """Prompt chunks, last tokens and draft nodes of all requests, as one run of rows.

    Args:
        work: this step's requests; the ready ones own the trees of `draft`, in the same order.
        draft: one tree for each ready request.
        kv: pages for all of it are reserved.
    """
    segments: list[Segment] = []
    prompt_logits: list[tuple[int, list[int]]] = []
    verify_logits: list[int] = []
    logits = 0
    for request, chunk in work:
        ready = chunk == request.pending
        tree = draft.tree(len(verify_logits)) if ready else Tree()
        predicted = _predicted(request, chunk)
        outputs = [position - request.computed for position, _ in predicted]
        prompt_logits.append((logits, [token for _, token in predicted]))
        if ready:
            verify_logits.append(logits + len(predicted))
            outputs += range(chunk - 1, chunk + len(tree.tokens))
        logits += len(outputs)
        segments.append(_segment(request, chunk, tree, outputs, kv))
    return Layout(Rows.of(segments), prompt_logits, verify_logits)


def _predicted(request: Request, chunk: int) -> list[tuple[int, int]]:
    """Positions of this chunk whose next token is a prompt token with log-probabilities to give."""
    if not request.wants_prompt_logprobs:
        return []
    first = max(request.computed, len(request.prompt_logprobs))
    last = min(request.computed + chunk, request.prompt_length - 1)
    return [(p, request.tokens[p + 1]) for p in range(first, last)]


def _segment(
    request: Request, chunk: int, tree: Tree, outputs: Sequence[int], kv: KVCache
) -> Segment:
    computed = request.computed
    fresh = request.tokens[computed : computed + chunk]
    depths: list[int] = []
    for parent in tree.parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    last = len(request.tokens) - 1
    return Segment(
        tokens=[*fresh, *tree.tokens],
        positions=[*range(computed, computed + chunk), *(last + depth for depth in depths)],
        parents=[*range(-1, chunk - 1), *(chunk + parent for parent in tree.parents)],
        slots=kv.slots(request.id, computed, computed + chunk + len(tree.tokens)),
        context=kv.slots(request.id, 0, computed),
        groups=request.here,
        outputs=outputs,
        only_best=only_best(request) and not request.wants_logits,
        reach=request.reach,
    )
