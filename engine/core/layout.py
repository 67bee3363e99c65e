"""A step's work and drafts, laid out as rows; and which logits and features belong to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import layer_columns
from fastslow.engine.sampling.probs import best_token, log_probability, only_best, would_end
from fastslow.engine.types import AcceptResult, Features, ModelOutput, Rows, Segment, Tree


@dataclass(slots=True)
class StepLayout:
    """A step's requests, those of them that get tokens, one tree for each of these, and rows for the model. Logits come
    back in this order: prompt rows, then verified rows, by request."""

    work: list[ScheduledChunk]
    ready: list[Request]
    trees: list[Tree]
    rows: Rows
    prompt_logits: list[tuple[int, list[int]]]  # by item: place of the first; tokens they predict
    verify_logits: list[int]  # by ready request: place after its last token; its nodes' follow
    verify_seen: list[int]  # the same among the rows whose features are wanted
    read_seen: list[int]  # among these, the rows of text whose features drafters want

    def accepted(self, result: AcceptResult, b: int) -> list[int]:
        """The rows of logits that the accepted tokens of request b came from."""
        return [self.verify_logits[b] + i for i in (0, *(n + 1 for n in result.accepted_nodes[b]))]


def lay_rows(
    work: list[ScheduledChunk], trees: list[Tree], kv: KVCache, read: Sequence[range]
) -> StepLayout:
    """Prompt chunks, last tokens and draft nodes of all requests, as one run of rows.

    trees: one for each ready request. read: positions of every item's text whose features drafters want.
    Pages for all of it are reserved.
    """
    segments: list[Segment] = []
    prompt_logits: list[tuple[int, list[int]]] = []
    verify_logits: list[int] = []
    verify_seen: list[int] = []
    read_seen: list[int] = []
    logits = looks = 0
    for item, positions in zip(work, read, strict=True):
        request, chunk = item
        ready = item.ready
        tree, branch, scored = trees[len(verify_logits)] if ready else Tree(), list[int](), False
        predicted = _predicted(request, chunk)
        outputs = [position - request.computed for position, _ in predicted]
        prompt_logits.append((logits, [token for _, token in predicted]))
        seen = [position - request.computed for position in positions]
        read_seen += range(looks, looks + len(seen))
        if ready:
            verify_logits.append(logits + len(predicted))
            verify_seen.append(looks + len(seen))
            verified = range(chunk - 1, chunk + len(tree.tokens))
            outputs += verified
            seen += verified
        if ready and (probe := request.answer_probe) is not None:
            branch, scored = probe.rows, probe.sure > 0
            end = chunk + len(tree.tokens) + len(branch)
            outputs += range(end - len(probe.draft) - 1, end)
        logits += len(outputs)
        looks += len(seen)
        segments.append(_segment(item, tree, branch, scored, outputs, seen, kv))
    served, rows = [item.request for item in work if item.ready], Rows.of(segments)
    return StepLayout(
        work, served, trees, rows, prompt_logits, verify_logits, verify_seen, read_seen
    )


def _predicted(request: Request, chunk: int) -> list[tuple[int, int]]:
    """Positions of this chunk, with the tokens after them whose log-probabilities are asked for."""
    if request.params.prompt_logprobs is None and request.params.logprobs is None:
        return []
    before, begun = request.computed, request.prompt_length - 1
    found: list[int] = []
    if request.wants_prompt_logprobs:
        first = max(before, len(request.log.prompt_logprobs))
        found += range(first, min(before + chunk, begun))
    if request.wants_answered_logprobs:
        first = max(before, begun + len(request.log.logprobs))
        found += range(first, min(before + chunk, begun + len(request.known.answered) - 1))
    return [(p, request.tokens[p + 1]) for p in found]


def _segment(
    item: ScheduledChunk,
    tree: Tree,
    branch: Sequence[int],
    scored: bool,
    outputs: Sequence[int],
    seen: Sequence[int],
    kv: KVCache,
) -> Segment:
    """`branch`: tokens that follow the last one beside the tree. `scored`: their logits are wanted."""
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
    )


def ask_probes(layout: StepLayout, out: ModelOutput) -> set[Request]:
    """Tell the probes of answers what they asked for. Returns the requests that stay where they are in this step,
    since theirs goes on."""
    waiting = set[Request]()
    each = zip(layout.ready, layout.trees, layout.verify_logits, strict=True)
    for request, tree, verified in each:
        probe, thinking = request.answer_probe, request.thinking
        if probe is None or thinking is None:
            continue
        rows = range(verified + 1 + len(tree.tokens), len(layout.rows.outputs))[
            : len(probe.draft) + 1
        ]
        request.spec_stats.probe_rows += len(probe.rows)
        best, logprobs = [int(out.best[row]) for row in rows], list[float]()
        if not layout.rows.only_best[verified]:
            best = [best_token(out.logits[row]) if n < 0 else n for row, n in zip(rows, best)]
            some = zip(rows, best) if probe.sure else ()
            logprobs = [log_probability(out.logits[row], token) for row, token in some]
        if not probe.take(best, logprobs):
            waiting.add(request)
            continue
        thinking.told(request.tokens, probe.settled)
        if probe.settled and request.grammar is None:
            request.known.ahead = [*thinking.ahead(request.tokens), *probe.answer]
    return waiting


def keep_answered(ready: Sequence[Request], result: AcceptResult) -> None:
    """The last token that a call brought of its answer stays what it is, whatever the target says now."""
    for b, request in enumerate(ready):
        if (token := request.next_answered) is not None:
            result.accepted_nodes[b], result.tokens[b] = [], [token]


def cut_at_ends(layout: StepLayout, result: AcceptResult, out: ModelOutput) -> list[int]:
    """Cut accepted tokens behind one that begins a closing tag where the model would rather have ended its answer,
    inside the thought. Returns how many are left of each request's; 0 where there is none."""
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


def with_probed(ready: Sequence[Request], layers: tuple[int, ...]) -> tuple[int, ...]:
    """These layers, and those whose outputs tell how a request is to be answered, ascending."""
    probes = {request.probe.layer for request in ready if request.probe is not None}
    return tuple(sorted({*layers, *probes})) if probes else layers


def see_prompts(
    layout: StepLayout, features: Features | None, layers: tuple[int, ...], wanted: tuple[int, ...]
) -> Features | None:
    """Show probes the prompts' ends; the features [S, F] that drafters `wanted`, out of all `layers`."""
    if features is None:
        return None
    for request, row in zip(layout.ready, layout.verify_seen, strict=True):
        if (probe := request.probe) is None or request.error is not None:
            continue
        seen = layer_columns(features[row : row + 1], layers, (probe.layer,))
        probe.see(torch.as_tensor(seen)[0])
        if probe.taken and request.escalation is not None:
            request.escalation.target = request.escalation.targets[probe.taken - 1]
        else:
            request.log.notes.append(str(probe))
    return layer_columns(features, layers, wanted) if wanted else None
