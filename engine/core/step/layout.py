"""Rows of a step, and the logits and features of each request."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.rows import Rows, Segment
from fastslow.engine.sampling.probs import only_best
from fastslow.engine.types import AcceptResult, Features, ModelOutput, Tree


@dataclass(slots=True)
class StepLayout:
    """A step as the model runs it: who takes part, and which of the model's outputs belong to whom.

    The model returns a row of logits for each of `rows.outputs`, request by request: first those of its prompt, then
    that of its last token, then those of its draft nodes. Features come in the same order.

    Attributes:
        work: all requests of the step.
        ready: those of them that get tokens.
        trees: their drafts.
        rows: what the model runs.
        prompt_logits: for each of `work`, its first row of logits, and the prompt tokens that its rows predict.
        verify_logits: for each of `ready`, the row of logits after its last token. Those of its nodes follow.
        verify_features: the same among the rows of features.
        text_features: the rows of features that belong to text which drafters read.
    """

    work: list[ScheduledChunk]
    ready: list[Request]
    trees: list[Tree]
    rows: Rows
    prompt_logits: list[tuple[int, list[int]]]
    verify_logits: list[int]
    verify_features: list[int]
    text_features: list[int]

    @property
    def pure(self) -> bool:
        """True where the step reads no prompt, only last tokens of answers and drafts. Ask before it is committed."""
        for request, chunk in self.work:
            if chunk != 1 or request.computed < request.prompt_length:
                return False
        return True

    def accepted(self, result: AcceptResult, b: int) -> list[int]:
        """Return the rows of logits that gave the accepted tokens of request b."""
        return [self.verify_logits[b] + i for i in (0, *(n + 1 for n in result.accepted_nodes[b]))]


def lay_rows(
    work: list[ScheduledChunk], trees: list[Tree], kv: KVCache, read: Sequence[range]
) -> StepLayout:
    """Lay out prompt chunks, last tokens and draft nodes of all requests as rows of one forward.

    trees: one for each ready request. read: for each item, the positions of its text whose features drafters want.
    Pages for all rows must be reserved.
    """
    served: list[Request] = []
    segments: list[Segment] = []
    prompt_logits: list[tuple[int, list[int]]] = []
    verify_logits: list[int] = []
    verify_features: list[int] = []
    text_features: list[int] = []
    logits = features = 0
    for item, positions in zip(work, read, strict=True):
        request, chunk = item
        ready = item.ready
        tree, scored = trees[len(verify_logits)] if ready else Tree(), False
        branch: Sequence[int] = ()
        outputs, predicted = _predicted(request, chunk)
        prompt_logits.append((logits, predicted))
        before = request.computed
        seen = [*range(positions.start - before, positions.stop - before)]
        text_features += range(features, features + len(seen))
        if ready:
            served.append(request)
            verify_logits.append(logits + len(predicted))
            verify_features.append(features + len(seen))
            verified = range(chunk - 1, chunk + len(tree.tokens))
            outputs += verified
            seen += verified
        if ready and (probe := request.answer_probe) is not None:
            branch, scored = probe.rows, probe.sure > 0
            end = chunk + len(tree.tokens) + len(branch)
            outputs += range(end - len(probe.draft) - 1, end)
        logits += len(outputs)
        features += len(seen)
        segments.append(_segment(item, tree, branch, scored, outputs, seen, kv))
    rows = Rows.of(segments)
    return StepLayout(
        work, served, trees, rows, prompt_logits, verify_logits, verify_features, text_features
    )


def left_out(
    late: Collection[Request], layout: StepLayout, result: AcceptResult
) -> tuple[StepLayout, AcceptResult]:
    """Return the step as if these requests got no tokens in it: of their text, all but the last token was read."""
    if not late:
        return layout, result
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
        verify_features=[layout.verify_features[b] for b in kept],
    )
    if result.tokens:
        result = AcceptResult(
            [result.accepted_nodes[b] for b in kept], [result.tokens[b] for b in kept]
        )
    return layout, result


def committed_features(
    out: ModelOutput, layout: StepLayout, result: AcceptResult
) -> Features | None:
    """Features [C, F] of committed tokens: for each request its last token, then its accepted nodes."""
    if out.seen is None:
        return None
    accepted = result.accepted_nodes
    if len(accepted) == 1 and accepted[0] == list(range(len(accepted[0]))):
        first = layout.verify_features[0]  # the usual case: adjacent rows, which need no copy
        return out.seen[first : first + len(accepted[0]) + 1]
    rows = [
        first + i
        for first, nodes in zip(layout.verify_features, accepted, strict=True)
        for i in (0, *(node + 1 for node in nodes))
    ]
    return out.seen[rows]


def read_features(out: ModelOutput, layout: StepLayout) -> Features | None:
    """Features [C, F] of the rows of text that drafters wanted, request by request."""
    if out.seen is None or not layout.text_features:
        return None
    return out.seen[layout.text_features]


def _predicted(request: Request, chunk: int) -> tuple[list[int], list[int]]:
    """Rows of this chunk whose next token needs a log-probability, and these tokens."""
    if request.params.prompt_logprobs is None and request.params.logprobs is None:
        return [], []
    before, begun = request.computed, request.prompt_length - 1
    found: list[int] = []
    if request.wants_prompt_logprobs:
        first = max(before, len(request.log.prompt_logprobs))
        found += range(first, min(before + chunk, begun))
    if request.wants_answered_logprobs:
        first = max(before, begun + len(request.log.logprobs))
        found += range(first, min(before + chunk, begun + len(request.known.answered) - 1))
    return [p - before for p in found], [request.tokens[p + 1] for p in found]


def _segment(
    item: ScheduledChunk,
    tree: Tree,
    branch: Sequence[int],
    scored: bool,
    outputs: Sequence[int],
    seen: Sequence[int],
    kv: KVCache,
) -> Segment:
    """Return the rows of one request. branch: a chain of a probe beside the tree, which also follows the last
    token. scored: the probe needs whole logits, not only the likeliest token."""
    request, chunk = item
    end = chunk + len(tree.tokens)
    computed = request.computed
    tokens = request.tokens[computed : computed + chunk]
    positions: Sequence[int] = range(computed, computed + chunk)
    parents: Sequence[int] = range(-1, chunk - 1)
    last = len(request.tokens) - 1
    if tree.tokens:
        tokens += tree.tokens
        positions = [*positions, *(last + depth for depth in tree.depths)]
        parents = [*parents, *(chunk + parent for parent in tree.parents)]
    if branch:
        tokens += branch
        positions = [*positions, *range(last + 1, last + 1 + len(branch))]
        parents = [*parents, chunk - 1, *range(end, end + len(branch) - 1)]
    return Segment(
        tokens=tokens,
        positions=positions,
        parents=parents,
        slots=kv.slots(request.id, computed, computed + end + len(branch)),
        context=kv.slots(request.id, 0, computed),
        groups=request.current_groups,
        outputs=outputs,
        feature_rows=seen,
        only_best=only_best(request) and not request.wants_logits and not scored,
        max_len=request.max_len,
        # a request that is left out runs its last token again: that is never folded in here
        running=kv.running(
            request.id,
            range(computed, computed + end + len(branch)),
            computed + chunk - (chunk == request.pending),
        ),
    )
