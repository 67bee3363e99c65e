"""Of several drafters those are asked that pay, and what they say is drafted side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from head_tools import node_paths

from fastslow.draft.base import BaseDrafter
from fastslow.draft.merge import MAX_DRAFTERS, merge_trees
from fastslow.draft.several import AdaptiveDrafter
from fastslow.engine.types import AcceptResult, Features, MarginalValue, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection
from fastslow.policies.speculation.tuning import TUNING

SURE = Tree([5, 5, 5], [-1, 0, 1], scores=[0.9, 0.8, 0.7])
UNSURE = Tree([6], [-1], scores=[0.1])
CHAIN = Tree.chain([8, 8])


class Says(BaseDrafter):
    """Proposes one tree for whoever may have nodes; notes what it sees. Takes its time."""

    def __init__(self, tree: Tree, seconds: float = 0.0, features: tuple[int, ...] = ()) -> None:
        self.tree, self.seconds, self.features = tree, seconds, features
        self.clock = [0.0]  # moves when a drafter takes its time
        self.asked = 0
        self.shown: list[Features | None] = []
        self.gone: list[int] = []

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        self.clock[0] += self.seconds
        self.asked += sum(n > 0 for n in nodes)
        return [self.tree if n else Tree() for n in nodes]

    def commit(self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None) -> None:
        self.shown.append(features)

    def release(self, requests: Collection[int]) -> None:
        self.gone += requests


def adaptive(*drafters: Says, token: float | None = None, row: float = 0.0) -> Any:
    """`token`: seconds that a token is worth, shared by a batch; None: no time is looked at."""
    clock = [0.0]
    for drafter in drafters:
        drafter.clock = clock
    value = None if token is None else lambda batch: MarginalValue(token / len(batch), row)
    return AdaptiveDrafter(drafters, AdaptiveSelection(len(drafters), value), lambda: clock[0])


def view(number: int = 0) -> Any:
    return SimpleNamespace(id=number, tokens=[1, 2], memory_key=None)


def step(best: Any, accepted: int, count: int = 1) -> list[list[int]]:
    """The trees of a batch of `count`, with this many nodes of each accepted."""
    views = [view(n) for n in range(count)]
    trees = best.propose(views, [4] * count)
    paths = [list(range(min(accepted, len(tree.tokens)))) for tree in trees]
    said = [[*(tree.tokens[n] for n in path), 7] for tree, path in zip(trees, paths)]
    best.commit(views, AcceptResult(paths, said), None)
    return [list(tree.tokens) for tree in trees]


def test_a_sure_draft_spares_the_others_where_its_promises_are_kept() -> None:
    cheap, dear = Says(SURE), Says(CHAIN)
    assert step(adaptive(cheap, dear), 3) == [[5, 5, 5]] and (cheap.asked, dear.asked) == (1, 0)
    assert step(adaptive(Says(UNSURE), Says(CHAIN)), 2) == [[8, 8]]
    assert step(adaptive(Says(Tree()), Says(CHAIN)), 2) == [[8, 8]]
    assert step(adaptive(Says(UNSURE), Says(Tree())), 0) == [[6]]
    best = adaptive(Says(SURE), Says(CHAIN))
    spoke = [step(best, 0)[0][0] for _ in range(20)]
    assert spoke[0] == 5 and 8 in spoke, "the sure one was never right"


def test_every_drafter_hears_of_every_step_and_of_ends() -> None:
    one, two = Says(SURE, 0.0, (1,)), Says(CHAIN, 0.0, (0, 2))
    best = adaptive(one, two)
    assert best.features == (0, 1, 2)
    best.propose([view()], [4])
    best.commit([view()], AcceptResult([[0]], [[5, 7]]), torch.tensor([[10.0, 11.0, 12.0]] * 2))
    assert one.shown[0] is not None and one.shown[0].tolist() == [[11.0]] * 2
    assert two.shown[0] is not None and two.shown[0].tolist() == [[10.0, 12.0]] * 2
    best.release([0])
    assert one.gone == two.gone == [0] and not best.selection._requests


@pytest.mark.parametrize(("seconds", "row", "accepted", "least", "most"), [
    pytest.param(5.0, 0.0, 1, 2, 13, id="takes five tokens' time: tried now and then"),
    pytest.param(0.5, 0.0, 2, 300, 300, id="its time pays"),
    pytest.param(0.01, 0.9 * TUNING.max_row_price, 2, 300, 300, id="rows are not dear"),
    pytest.param(0.01, 0.5, 2, 0, 0, id="rows are dear: only the first is asked"),
])  # fmt: skip
def test_a_second_drafter_is_asked_where_it_pays(
    seconds: float, row: float, accepted: int, least: int, most: int
) -> None:
    cheap, dear = Says(UNSURE, 0.001), Says(CHAIN, seconds, (3,))
    best = adaptive(cheap, dear, token=1.0, row=row)
    for _ in range(300):
        step(best, accepted)
    assert row > TUNING.max_row_price or cheap.asked == 300
    assert least <= dear.asked <= most
    assert best.features == (3,) or not most or seconds > 1


class Cold(Says):
    """Takes nine times as long where it was not asked in one of the last four steps."""

    rested = 9

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        if any(nodes):
            self.clock[0] += 8 * self.seconds * (self.rested > 4)
            self.rested = 0
        return super().propose(batch, nodes)

    def commit(self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None) -> None:
        self.rested += 1


def test_what_asking_takes_is_learnt_from_questions_in_turn() -> None:
    """A head that rested finds its weights in no cache: that says nothing of the questions after it."""
    cheap, dear = Says(SURE, 0.001), Cold(CHAIN, 0.5)
    best = adaptive(cheap, dear, token=1.0)
    for _ in range(100):
        step(best, 2)
        cheap.tree = SURE if cheap.tree is not SURE and dear.asked % 7 == 0 else UNSURE
    assert dear.asked > 50, "it pays, though it is often interrupted"
    cheap.tree = SURE
    for _ in range(300):
        step(best, 3)
    cheap.tree, dear.asked = Tree(), 0
    for _ in range(150):
        step(best, 2)
    assert dear.asked > 140, "it is asked again after its rest"


def test_a_drafter_that_rests_between_questions_is_asked_at_its_price_after_a_rest() -> None:
    """It would bring two tokens in every sixth step, and asking takes 4.5 tokens' time each time."""
    cheap, dear = Says(SURE, 0.001), Cold(CHAIN, 0.5)
    best = adaptive(cheap, dear, token=1.0)
    for turn in range(600):
        cheap.tree = Tree() if turn % 6 == 0 else SURE
        step(best, 2 if turn % 6 == 0 else 3)
    assert 2 <= dear.asked <= 30, "tried now and then"


def test_a_drafter_that_raises_is_tried_as_seldom_as_one_that_brings_nothing() -> None:
    cheap, dear = Says(UNSURE, 0.001), Says(CHAIN, 50.0)
    best, raised = adaptive(cheap, dear, token=1.0), 0
    for turn in range(300):
        if turn == 60:
            dear.propose = None  # type: ignore[assignment]
        try:
            step(best, 0)
        except TypeError:
            raised += 1
    assert 1 <= raised <= 10


@pytest.mark.parametrize(("row", "least", "most"), [(0.1, 200, 200), (0.6, 1, 29)])
def test_rows_count_against_a_draft(row: float, least: int, most: int) -> None:
    """Two nodes of which one is accepted: a token, less two rows."""
    only = Says(CHAIN, 0.01)
    best = adaptive(only, token=1.0, row=row)
    for _ in range(200):
        step(best, 1)
    assert least <= only.asked <= most


def test_what_never_pays_is_tried_for_one_request_at_a_time_and_reads_nothing() -> None:
    cheap, dear = Says(UNSURE), Says(CHAIN, 50.0, (3,))
    best = adaptive(cheap, dear, token=8.0)
    for _ in range(30):
        step(best, 0, 8)
    read = 0
    for _ in range(300):
        dear.asked = 0
        step(best, 0, 8)
        assert dear.asked <= 1
        read += best.features == (3,)
    assert read < 30, "features are gathered shortly before it is tried"


def test_steps_in_which_nobody_may_draft_are_waited_for_too() -> None:
    cheap, dear = Says(UNSURE, 0.001), Says(CHAIN, 5.0)
    best = adaptive(cheap, dear, token=1.0)
    for _ in range(40):
        step(best, 0)
    asked = dear.asked
    step(best, 0)
    assert dear.asked == asked, "it waits"
    for count, tried in ((8, 0), (1, 1)):  # rests of other batches do not count
        for _ in range(TUNING.select_wait[1]):
            views = [view(n) for n in range(count)]
            best.propose(views, [0] * count)
            best.commit(views, AcceptResult([[]] * count, [[7]] * count), None)
        step(best, 0)
        assert dear.asked == asked + tried


def test_a_batch_of_another_size_is_another_case_and_a_new_request_is_not() -> None:
    dear = Says(CHAIN, 0.5)
    best = adaptive(dear, token=1.0)
    for _ in range(60):
        step(best, 0, 8)
    dear.asked = 0
    assert step(best, 2) == [[8, 8]], "nothing is known of one request"
    for _ in range(20):
        step(best, 2)
    assert dear.asked == 21
    best = adaptive(dear, token=1.0)
    for _ in range(40):
        step(best, 0)
    dear.asked = 0
    best.propose([view(99)], [4])
    assert dear.asked == 0, "it begins with what others saw"


def test_what_several_say_is_drafted_side_by_side() -> None:
    """They agree on 5 and part after it; what they hold apart is judged apart."""
    one = Tree([5, 6], [-1, 0], scores=[0.6, 0.3])
    two = Tree([5, 8, 9], [-1, 0, -1], scores=[0.5, 0.35, 0.1])
    best = adaptive(Says(one, 0.001), Says(two, 0.001), token=1.0)
    tree = best.propose([view()], [8])[0]
    assert [*zip(tree.tokens, tree.parents)] == [(5, -1), (8, 0), (6, 0), (9, -1)]
    assert tree.scores is not None and tree.scores == sorted(tree.scores, reverse=True)
    assert tree.drafter_ids is not None and len(set(tree.drafter_ids)) == 3
    best.commit([view()], AcceptResult([[0, 1]], [[5, 8, 7]]), None)
    gains = [gain.tokens.value for gain in best.selection._requests[0].gains]
    assert gains == [1.0, 1.5], "each by what it held: one and two tokens, and a prior of 1"
    best = adaptive(Says(SURE))
    best.propose([view()], [4])
    best.commit([view()], AcceptResult([[0]], [[5, 5]]), None)
    gains = [gain.tokens.value for gain in best.selection._requests[0].gains]
    assert gains == [1.0], "one was accepted: what was cut brought nothing"


def test_a_sampled_tree_is_drafted_alone() -> None:
    drawn = Tree([4], [-1], np.full((1, 10), 0.1, dtype=np.float32))
    assert step(adaptive(Says(UNSURE), Says(drawn)), 1) == [[4]]
    best = adaptive(Says(drawn), Says(SURE))
    spoke = step(best, 0)
    assert [gain.tokens.count for gain in best.selection._requests[0].gains] == [2, 1], "who was not drafted"
    spoke += [tree for _ in range(3) for tree in step(best, 0)]
    assert [4] in spoke and [5, 5, 5] in spoke and all(len(set(tokens)) == 1 for tokens in spoke)


def grown(random: Random, nodes: int) -> Tree:
    """A tree of few tokens, so that two have much in common."""
    tokens, parents, scores = list[int](), list[int](), list[float]()
    for _ in range(nodes):
        parent, token = random.randint(-1, len(tokens) - 1), random.randint(0, 2)
        if (parent, token) not in zip(parents, tokens):
            tokens.append(token)
            parents.append(parent)
            scores.append((scores[parent] if parent >= 0 else 1.0) * random.random())
    return Tree(tokens, parents, scores=scores)


@pytest.mark.parametrize("seed", range(20))
def test_all_nodes_are_held_once_and_no_child_is_likelier_than_its_parent(seed: int) -> None:
    random = Random(seed)
    parts = [(number, grown(random, random.randint(1, 12))) for number in range(3)]
    whole = merge_trees(parts, 100)
    wanted = [set(node_paths(tree)) for _, tree in parts]
    paths = node_paths(whole)
    assert set(paths) == set().union(*wanted) and whole.scores is not None and whole.drafter_ids is not None
    for node, path in enumerate(paths):
        parent, ids = whole.parents[node], whole.drafter_ids[node]
        assert 0 <= whole.scores[node] <= (whole.scores[parent] if parent >= 0 else 1.0)
        holders, others = ids % (1 << MAX_DRAFTERS), ids >> MAX_DRAFTERS
        for number, _ in parts:
            assert bool(holders >> number & 1) == (path in wanted[number])
            beside = any(p[:-1] == path[:-1] for p in wanted[number])
            assert bool(others >> number & 1) == (beside and path not in wanted[number])
    for parent in range(-1, len(whole.tokens)):
        children = [s for s, p in zip(whole.scores, whole.parents) if p == parent]
        assert sum(children) <= (whole.scores[parent] if parent >= 0 else 1.0) + 1e-9
    few = merge_trees(parts, 4)
    assert len(few.tokens) == min(4, len(whole.tokens)) and few.scores is not None
    assert sorted(few.scores) == sorted(whole.scores)[-len(few.tokens) :]


def test_where_they_agree_a_node_is_surer_and_the_likeliest_path_comes_first() -> None:
    one, two = Tree([5], [-1], scores=[0.5]), Tree([5], [-1], scores=[0.6])
    assert merge_trees([(0, one), (1, two)], 4).scores == pytest.approx([0.8])
    alone = merge_trees([(1, two)], 4)
    assert alone.scores == [0.6] and alone.drafter_ids == [2]
    one, two = (Tree([a, a + 1], [-1, 0], scores=[s, s - 0.1]) for a, s in ((1, 0.3), (7, 0.6)))
    assert list(merge_trees([(0, one), (1, two)], 4).tokens) == [7, 8, 1, 2]
