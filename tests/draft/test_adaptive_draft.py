"""Of several drafters those are asked that pay, and what they say is drafted side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastslow.draft.base import BaseDrafter
from fastslow.draft.several import AdaptiveDrafter
from fastslow.engine.types import AcceptResult, Drafter, MarginalValue, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection
from fastslow.policies.speculation.tuning import TUNING


class Says(BaseDrafter):
    """Proposes one tree for whoever may have nodes; notes what it is told."""

    def __init__(self, tree: Tree, features: tuple[int, ...] = ()) -> None:
        self.tree = tree
        self.features = features
        self.asked = 0
        self.told: list[torch.Tensor | None] = []
        self.gone: list[int] = []

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        self.asked += sum(n > 0 for n in nodes)
        return [self.tree if n else Tree() for n in nodes]

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        self.told.append(features)

    def release(self, requests: Collection[int]) -> None:
        self.gone += requests


def adaptive(
    drafters: Sequence[Drafter],
    value: Callable[[Sequence[RequestView]], MarginalValue] | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> AdaptiveDrafter:
    return AdaptiveDrafter(drafters, AdaptiveSelection(len(drafters), value), now)


def selection_of(best: AdaptiveDrafter) -> AdaptiveSelection:
    assert isinstance(best.selection, AdaptiveSelection)
    return best.selection


def known(best: AdaptiveDrafter) -> Any:
    """What request 0 knows of each drafter."""
    return selection_of(best)._requests[0].gains


def view(number: int = 0) -> Any:
    return SimpleNamespace(id=number, tokens=[1, 2])


def value_of(row: float) -> Callable[[Sequence[RequestView]], MarginalValue]:
    return lambda batch: MarginalValue(1.0, row)


def step(best: AdaptiveDrafter, accepted: int) -> list[int]:
    tree = best.propose([view()], [4])[0]
    path = list(range(min(accepted, len(tree.tokens))))
    best.commit([view()], AcceptResult([path], [said(tree, path)]), None)
    return list(tree.tokens)


def said(tree: Tree, path: list[int]) -> list[int]:
    """What a step gives: the accepted tokens, and one more."""
    return [*(tree.tokens[node] for node in path), 7]


class Watch:
    """Time that only moves when the test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Says):
    """Takes its time whenever it is asked."""

    def __init__(self, tree: Tree, watch: Watch, seconds: float, features: tuple[int, ...] = ()):
        super().__init__(tree, features)
        self.watch, self.seconds = watch, seconds

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        self.watch.now += self.seconds
        return super().propose(batch, nodes)


SURE = Tree([5, 5, 5], [-1, 0, 1], scores=[0.9, 0.8, 0.7])
UNSURE = Tree([6], [-1], scores=[0.1])
CHAIN = Tree.chain([8, 8])


def test_a_sure_draft_spares_the_others() -> None:
    cheap, dear = Says(SURE), Says(CHAIN)
    assert step(adaptive([cheap, dear]), 3) == [5, 5, 5]
    assert (cheap.asked, dear.asked) == (1, 0)


def test_an_unsure_one_does_not() -> None:
    assert step(adaptive([Says(UNSURE), Says(CHAIN)]), 2) == [8, 8]
    assert step(adaptive([Says(Tree()), Says(CHAIN)]), 2) == [8, 8]
    assert step(adaptive([Says(UNSURE), Says(Tree())]), 0) == [6]


def test_promises_that_are_not_kept_are_not_believed() -> None:
    best = adaptive([Says(SURE), Says(CHAIN)])
    spoke = [step(best, 0)[0] for _ in range(20)]
    assert spoke[0] == 5 and 8 in spoke, "the sure one was never right"


def test_who_brings_nothing_is_not_asked_any_more() -> None:
    kept, dear = Says(UNSURE), Says(CHAIN)
    best = adaptive([kept, dear])
    for _ in range(60):
        step(best, 0)
    before = dear.asked
    kept.tree = SURE
    for _ in range(5):
        assert step(best, 3) == [5, 5, 5]
    assert dear.asked == before


def test_everyone_hears_of_every_step_and_of_ends() -> None:
    one, two = Says(SURE, (1,)), Says(CHAIN, (0, 2))
    best = adaptive([one, two])
    assert best.features == (0, 1, 2)
    best.propose([view()], [4])
    best.commit([view()], AcceptResult([[0]], [[5, 7]]), torch.tensor([[10.0, 11.0, 12.0]] * 2))
    assert one.told[0] is not None and one.told[0].tolist() == [[11.0]] * 2
    assert two.told[0] is not None and two.told[0].tolist() == [[10.0, 12.0]] * 2
    best.release([0])
    assert one.gone == two.gone == [0] and not selection_of(best)._requests


def step_all(best: AdaptiveDrafter, count: int, accepted: int) -> list[list[int]]:
    views = [view(n) for n in range(count)]
    trees = best.propose(views, [4] * count)
    accepted_nodes = [list(range(min(accepted, len(tree.tokens)))) for tree in trees]
    tokens = [said(tree, path) for tree, path in zip(trees, accepted_nodes)]
    best.commit(views, AcceptResult(accepted_nodes, tokens), None)
    return [list(tree.tokens) for tree in trees]


def test_time_is_charged_to_who_took_it() -> None:
    """A token gains one second; the second drafter takes five, and the first one is still asked."""
    watch = Watch()
    cheap, dear = Slow(UNSURE, watch, 0.001), Slow(CHAIN, watch, 5.0, (3,))
    best = adaptive([cheap, dear], lambda batch: MarginalValue(1.0, 0.0), watch)
    for _ in range(300):
        step_all(best, 1, 1)
    assert cheap.asked == 300
    assert 2 <= dear.asked <= 10, "tried now and then"


def test_a_drafter_is_asked_where_its_time_pays() -> None:
    watch = Watch()
    cheap, dear = Slow(UNSURE, watch, 0.001), Slow(CHAIN, watch, 0.5)
    best = adaptive([cheap, dear], lambda batch: MarginalValue(1.0, 0.0), watch)
    last = [step_all(best, 1, 2)[0] for _ in range(50)][-1]
    assert last == [8, 8] and dear.asked == 50


def test_rows_count_against_a_draft() -> None:
    """Two nodes of which one is accepted: a token, less two rows of 0.6 tokens each."""
    asked = {}
    for row in (0.1, 0.6):
        watch = Watch()
        only = Slow(CHAIN, watch, 0.01)
        best = adaptive([only], value_of(row), watch)
        for _ in range(200):
            step_all(best, 1, 1)
        asked[row] = only.asked
    assert asked[0.1] == 200 and asked[0.6] < 30


def test_what_never_pays_is_tried_for_one_request_at_a_time_and_reads_nothing() -> None:
    watch = Watch()
    cheap, dear = Slow(UNSURE, watch, 0.0), Slow(CHAIN, watch, 50.0, (3,))
    best = adaptive([cheap, dear], lambda batch: MarginalValue(1.0, 0.0), watch)
    for _ in range(30):
        step_all(best, 8, 0)
    before, read = dear.asked, 0
    for _ in range(300):
        dear.asked = 0
        step_all(best, 8, 0)
        before += dear.asked
        assert dear.asked <= 1
        read += best.features == (3,)
    assert read < 30, "features are gathered shortly before it is tried"


def test_a_batch_of_another_size_is_another_case() -> None:
    watch = Watch()
    dear = Slow(CHAIN, watch, 0.5)
    best = adaptive([dear], lambda batch: MarginalValue(1.0 / len(batch), 0.0), watch)
    for _ in range(60):
        step_all(best, 8, 0)
    dear.asked = 0
    assert step_all(best, 1, 2) == [[8, 8]], "of a single request nothing is known yet"
    for _ in range(20):
        step_all(best, 1, 2)
    assert dear.asked == 21


def test_a_new_request_begins_with_what_others_saw() -> None:
    watch = Watch()
    dear = Slow(CHAIN, watch, 0.5)
    best = adaptive([dear], lambda batch: MarginalValue(1.0, 0.0), watch)
    for _ in range(40):
        step(best, 0)
    dear.asked = 0
    best.propose([view(99)], [4])
    assert dear.asked == 0


def test_a_tree_says_who_made_it() -> None:
    best = adaptive([Says(Tree()), Says(CHAIN)])
    tree = best.propose([view()], [4])[0]
    assert tree.drafter_ids == [2, 2] and tree.only([0]).drafter_ids == [2]


def test_where_rows_are_dear_only_the_first_is_asked() -> None:
    asked = {}
    for row in (0.1, 0.5):
        watch = Watch()
        cheap, dear = Slow(UNSURE, watch, 0.001), Slow(CHAIN, watch, 0.01, (3,))
        best = adaptive([cheap, dear], value_of(row), watch)
        for _ in range(300):
            step_all(best, 2, 2)
        asked[row] = dear.asked
        assert best.features == ((3,) if row < TUNING.max_row_price else ())
    assert asked[0.1] == 600 and asked[0.5] == 0


def test_what_several_say_is_drafted_side_by_side() -> None:
    """They agree on 5 and part after it; what they hold apart is judged apart."""
    one = Tree([5, 6], [-1, 0], scores=[0.6, 0.3])
    two = Tree([5, 8, 9], [-1, 0, -1], scores=[0.5, 0.35, 0.1])
    watch = Watch()
    asked = Slow(one, watch, 0.001), Slow(two, watch, 0.001)
    best = adaptive(asked, lambda batch: MarginalValue(1.0, 0.0), watch)
    tree = best.propose([view()], [8])[0]
    assert [*zip(tree.tokens, tree.parents)] == [(5, -1), (8, 0), (6, 0), (9, -1)]
    assert tree.scores is not None and tree.scores == sorted(tree.scores, reverse=True)
    assert tree.drafter_ids is not None and len(set(tree.drafter_ids)) == 3
    best.commit([view()], AcceptResult([[0, 1]], [[5, 8, 7]]), None)
    gains = [gain.tokens.value for gain in known(best)]
    assert gains == [1.0, 1.5], (
        "each is judged by what it held: one and two tokens, and a prior of 1"
    )


def test_a_node_that_was_cut_is_judged_by_what_came() -> None:
    best = adaptive([Says(SURE)])
    best.propose([view()], [4])
    best.commit([view()], AcceptResult([[0]], [[5, 5]]), None)
    assert known(best)[0].tokens.value == 1.5, "two of its tokens came, though one was run"


def test_a_sampled_tree_is_drafted_alone() -> None:
    drawn = Tree([4], [-1], np.full((1, 10), 0.1, dtype=np.float32))
    assert step(adaptive([Says(UNSURE), Says(drawn)]), 1) == [4]
    best = adaptive([Says(drawn), Says(SURE)])
    spoke = [step(best, 0)]
    assert [gain.tokens.count for gain in known(best)] == [2, 1], "who was not drafted"
    spoke += [step(best, 0) for _ in range(3)]
    assert [4] in spoke and [5, 5, 5] in spoke
    assert all(len(set(tokens)) == 1 for tokens in spoke)
