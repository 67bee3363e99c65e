"""The drafts of a step: how many nodes each request may draft, and which of them run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import gt

from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import ScheduledChunk, Scheduler
from fastslow.engine.sampling.grammars.grammar import FURTHEST
from fastslow.engine.token_mask import CERTAIN
from fastslow.engine.types import StepCostModel, Tree


def draft_sizes(
    work: Sequence[ScheduledChunk],
    ready: Sequence[Request],
    scheduler: Scheduler,
    slow: Callable[[Request], bool],
) -> list[int]:
    """Return how many nodes each ready request may draft, and reserve pages for them.

    That is what its policy plans, as far as latency targets, its share of the step and free pages allow. slow: tells
    whose masks take so long that it drafts nothing.
    """
    running = len(scheduler.running)
    plans: list[int] = []
    dealt: list[int] = []
    for request in ready:
        request.enter_phase()
        planned = fits = 0
        try:
            if request.next_answered is None and not slow(request):
                planned = min(len(request.known.ahead), FURTHEST)
                planned = planned or request.drafting.policy.plan(request, running)
                planned = max(planned, _certain(request))
            fits = scheduler.latency_budget.nodes(request, planned, len(ready))
        except Exception as error:  # noqa: BLE001 - its own settings: the others run
            request.fail(error)
        plans.append(planned)
        dealt.append(fits)
    fitting = dealt
    if any(dealt):
        rows = Counter[str | None]()
        for request, chunk in work:
            rows[request.share] += chunk + request.rows_after(request.computed + chunk)
        dealt = scheduler.budget.nodes(ready, dealt, rows)
    sizes = list(map(scheduler.room, ready, dealt))
    for request, plan, fits, own, size in zip(ready, plans, fitting, dealt, sizes):
        if request.log.trace is not None:
            left = max(0, request.max_len - len(request.tokens))
            request.log.trace.plan(plan, fits, own, left, size)
    return sizes


def _certain(request: Request) -> int:
    """Count the next tokens that a grammar leaves no choice of: they pay whatever the policy says."""
    if request.grammar is None:
        return 0
    speculation = request.drafting.speculation
    if speculation.drafter == "off" or speculation.nodes is not None:
        return 0
    return len(request.grammar.ahead(request.tokens, (), FURTHEST))


def cut_drafts(
    ready: Sequence[Request],
    trees: Sequence[Tree],
    planned: Sequence[int],
    rows: int,
    cost_model: StepCostModel,
) -> list[Tree]:
    """The drafts, cut to what pays over the whole batch.

    No decision sees a token that was sampled in this step. A sampled chain is judged as a chain of as many
    nodes as its drafter was asked for, wherever it really ends: what was drawn may have ended it, as a
    grammar does. Certain tokens that follow what was drawn are judged after it. A sampled tree with branches
    runs whole.

    Args:
        ready: requests that decode.
        trees: their drafts.
        planned: most nodes that each drafter was asked for.
        rows: the step's other rows.
        cost_model: knows what pays.
    """
    drawn = [_drawn(tree) for tree in trees]
    shapes = [
        tree if size is None else _chain(tree, max(most, size))
        for tree, size, most in zip(trees, drawn, planned, strict=True)
    ]
    survival = [
        None if tree.probs is not None and size is None else r.survival(tree) if tree.tokens else ()
        for r, tree, size in zip(ready, shapes, drawn, strict=True)
    ]
    if not any(survival):  # all of fixed length
        return list(trees)
    sizes = [
        len(tree.tokens if chances is None else chances) for tree, chances in zip(trees, survival)
    ]
    kept = cost_model.nodes_that_pay(ready, survival, sizes, rows)
    tails: list[list[float]] = [[] for _ in trees]
    for b, (tree, size, chances) in enumerate(zip(trees, drawn, survival)):
        if size is not None and chances is not None:
            if len(kept[b]) >= size:
                tails[b] = [chances[size - 1]] * (len(tree.tokens) - size)
            kept[b] = kept[b][:size]
    if any(tails):
        rows += sum(map(len, kept))
        more = cost_model.nodes_that_pay(ready, tails, list(map(len, tails)), rows)
        kept = [[*nodes, *(len(nodes) + i for i in some)] for nodes, some in zip(kept, more)]
    for request, tree, nodes in zip(ready, trees, kept, strict=True):
        cut = len(tree.tokens) - len(nodes)
        request.spec_stats.cut += cut
        if request.log.trace is not None:
            request.log.trace.cut("cost_model", cut)
    return [tree.only(nodes) for tree, nodes in zip(trees, kept)]


def _drawn(tree: Tree) -> int | None:
    """Count the nodes of a sampled chain that were drawn: the others are certain. None: it is no such chain."""
    if tree.probs is None or list(tree.parents) != list(range(-1, len(tree.tokens) - 1)):
        return None
    drafters = list(tree.drafter_ids or ())
    return drafters.index(CERTAIN) if CERTAIN in drafters else len(tree.tokens)


def _chain(tree: Tree, nodes: int) -> Tree:
    """A chain of this many nodes of the same drafter, without its tokens."""
    drafter = tree.drafter_ids[0] if tree.drafter_ids else 0
    return Tree([0] * nodes, range(-1, nodes - 1), drafter_ids=[drafter] * nodes)


def check_trees(trees: Sequence[Tree], nodes: Sequence[int], vocab_size: int) -> int:
    """Anyone may write a drafter, so an unusable tree is stopped before the model sees it. Returns how many nodes all
    have."""
    drafted = [len(tree.tokens) for tree in trees]
    if len(drafted) != len(nodes) or any(map(gt, drafted, nodes)):
        raise ValueError(f"the drafter proposed {drafted} nodes where {list(nodes)} fit")
    for tree in trees:
        if not tree.tokens:
            continue
        if min(tree.tokens) < 0 or max(tree.tokens) >= vocab_size:
            raise ValueError(
                f"the drafter proposed tokens {list(tree.tokens)}, and ids are 0 to {vocab_size - 1}"
            )
        parents = tree.parents
        if len(parents) != len(tree.tokens) or any(not -1 <= p < i for i, p in enumerate(parents)):
            raise ValueError(
                f"the drafter proposed parents {list(parents)}: each must come earlier"
            )
        if tree.drafter_names is not None and len(tree.drafter_names) != len(tree.tokens):
            raise ValueError(
                f"the drafter named {len(tree.drafter_names)} sources for {len(tree.tokens)} nodes"
            )
    return sum(drafted)
