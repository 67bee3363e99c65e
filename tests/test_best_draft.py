"""Of several drafters, the one that promises most speaks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastslow.draft.best import Best
from fastslow.engine.types import Draft, RequestView, Tree, Verdict


class Says:
    """Proposes one tree for whoever may have nodes; notes what it is told."""

    def __init__(self, tree: Tree, features: tuple[int, ...] = ()) -> None:
        self.tree = tree
        self.features = features
        self.asked = 0
        self.told: list[torch.Tensor | None] = []
        self.gone: list[int] = []

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        self.asked += sum(n > 0 for n in nodes)
        return Draft.of([self.tree if n else Tree() for n in nodes])

    def commit(
        self, batch: Sequence[RequestView], verdict: Verdict, features: torch.Tensor | None
    ) -> None:
        self.told.append(features)

    def release(self, requests: Collection[int]) -> None:
        self.gone += requests


def view(number: int = 0) -> Any:
    return SimpleNamespace(id=number, tokens=[1, 2])


def step(best: Best, accepted: int) -> list[int]:
    tree = best.propose([view()], [4]).tree(0)
    path = list(range(min(accepted, len(tree.tokens))))
    best.commit([view()], Verdict([path], [[7] * (len(path) + 1)]), None)
    return list(tree.tokens)


SURE = Tree([5, 5, 5], [-1, 0, 1], scores=[0.9, 0.8, 0.7])
UNSURE = Tree([6], [-1], scores=[0.1])
CHAIN = Tree.chain([8, 8])


def test_a_sure_draft_spares_the_others() -> None:
    cheap, dear = Says(SURE), Says(CHAIN)
    assert step(Best([cheap, dear]), 3) == [5, 5, 5]
    assert (cheap.asked, dear.asked) == (1, 0)


def test_an_unsure_one_does_not() -> None:
    assert step(Best([Says(UNSURE), Says(CHAIN)]), 2) == [8, 8]
    assert step(Best([Says(Tree()), Says(CHAIN)]), 2) == [8, 8]
    assert step(Best([Says(UNSURE), Says(Tree())]), 0) == [6]


def test_promises_that_are_not_kept_are_not_believed() -> None:
    best = Best([Says(SURE), Says(CHAIN)])
    spoke = [step(best, 0)[0] for _ in range(20)]
    assert spoke[0] == 5 and 8 in spoke, "the sure one was never right"


def test_who_brings_nothing_is_not_asked_any_more() -> None:
    kept, dear = Says(UNSURE), Says(CHAIN)
    best = Best([kept, dear])
    for _ in range(60):
        step(best, 0)
    before = dear.asked
    kept.tree = SURE
    for _ in range(5):
        assert step(best, 3) == [5, 5, 5]
    assert dear.asked == before


def test_everyone_hears_of_every_step_and_of_ends() -> None:
    one, two = Says(SURE, (1,)), Says(CHAIN, (0, 2))
    best = Best([one, two])
    assert best.features == (0, 1, 2)
    best.propose([view()], [4])
    best.commit([view()], Verdict([[0]], [[5, 7]]), torch.tensor([[10.0, 11.0, 12.0]] * 2))
    assert one.told[0] is not None and one.told[0].tolist() == [[11.0]] * 2
    assert two.told[0] is not None and two.told[0].tolist() == [[10.0, 12.0]] * 2
    best.release([0])
    assert one.gone == two.gone == [0] and not best._records
    with pytest.raises(ValueError, match="at least one drafter"):
        Best([])
