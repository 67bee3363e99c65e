"""Requests of one memory key, whatever they show, change nothing for those of another."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.engine.params import Speculation
from fastslow.engine.types import AcceptResult, DraftCall, MarginalValue, StepTiming, Tree
from fastslow.policies.speculation.backoff import MOST_KEYS, ByKey
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.loss_budget import LossBudgets
from fastslow.policies.speculation.selection import AdaptiveSelection
from fastslow.policies.speculation.step_cost import StepCostCurve

CHAIN = Tree.chain([1, 2, 3])
DEAR = StepCostCurve([1, 2, 8, 64], [1.0, 1.3, 3.1, 20.0])
USUAL = DEAR.seconds(4)


def view(key: str | None, number: int = 0) -> Any:
    return SimpleNamespace(groups=None, memory_key=key, id=number, tokens=[1, 2])


def plans(controller: SpeculationController, key: str | None) -> list[Any]:
    """The plans and chances of a new request of a key in its first steps."""
    policy = controller.policy(Speculation(), "suffix", memory_key=key)
    found: list[Any] = []
    for _ in range(30):
        found += [policy.plan(view(key), 1), policy.survival(CHAIN)]
        policy.record(CHAIN, [0, 1])
        controller.note([view(key)], StepTiming(4, USUAL, 0.0, 3, True))
    return found


def test_a_bad_key_changes_no_plan_of_another() -> None:
    alone = plans(SpeculationController(lambda groups: DEAR), "b")
    controller = SpeculationController(lambda groups: DEAR)
    bad = controller.policy(Speculation(), "suffix", memory_key="a")
    for _ in range(300):
        bad.plan(view("a"), 1)
        bad.record(CHAIN, [])
        controller.note([view("a")], StepTiming(4, USUAL, 0.0, 1, True))
    controller.note([view("a")], StepTiming(1, DEAR.seconds(1), 0.0, 1, True))  # no drafts
    assert plans(controller, "b") == alone
    assert plans(controller, "a") != alone, "it learns of its own"


def test_a_selection_learns_by_key() -> None:
    def gains(selection: AdaptiveSelection, key: str, number: int) -> list[int]:
        sizes = []
        for _ in range(12):
            asked: list[int] = []

            def ask(drafter: int, nodes: Any, asked: list[int] = asked) -> Any:
                asked.append(drafter)
                return [CHAIN], 0.0

            selection.collect([view(key, number)], [4], ask)
            selection.judge([view(key, number)], AcceptResult([[]], [[9]]))
            sizes.append(len(asked))
        return sizes

    value = MarginalValue(1.0, 0.1)
    alone = gains(AdaptiveSelection(2, lambda batch: value), "b", 1)
    selection = AdaptiveSelection(2, lambda batch: value)
    for n in range(30):
        gains(selection, "a", 100 + n)
    selection.release(range(100, 130))
    assert gains(selection, "b", 1)[:4] == alone[:4] and gains(selection, "a", 2)[:4] != alone[:4]


def test_what_asking_takes_is_learnt_by_key() -> None:
    quick, slow = (DraftCall("suffix", seconds, 1, 4, {"b"}) for seconds in (1e-6, 100 * USUAL))
    known = SpeculationController(lambda groups: DEAR)
    known.drafted(quick)
    alone = plans(known, "b")
    controller = SpeculationController(lambda groups: DEAR)
    controller.drafted(quick)
    for keys in ({"a"}, {"a", "b"}):  # of a question for several nobody knows whose it was
        for _ in range(20):
            controller.drafted(slow._replace(keys=keys))
    assert plans(controller, "b") == alone and alone[0] == 4
    assert plans(controller, "a")[0] == 0, "it learns of its own"
    assert plans(controller, "c")[0] == 0, "who never asked alone knows what several took"


def test_a_pass_for_more_requests_takes_longer() -> None:
    controller = SpeculationController(lambda groups: DEAR)
    assert controller.seconds(None, 8) == pytest.approx(3.1)
    assert controller.draft_seconds("self", None, 1) is None
    for adaptive in (False, True):
        drafter = f"adaptive: {adaptive}"
        controller.drafted(DraftCall(drafter, 0.4, 1, 4, adaptive=adaptive))
        assert controller.draft_seconds(drafter, None, 1) == pytest.approx(0.1)
        assert controller.draft_seconds(drafter, None, 8) == pytest.approx(0.31)
    assert controller._costs.node_seconds("adaptive: True") is None, "it plans by itself"


def test_a_selection_learns_by_key_what_asking_takes() -> None:
    def asked(selection: AdaptiveSelection, keys: list[str], seconds: float) -> int:
        """Count how often the second drafter is asked in 30 steps."""
        count, batch = [0, 0], [view(key, n) for n, key in enumerate(keys)]

        def ask(drafter: int, nodes: Any) -> Any:
            count[drafter] += 1
            return [CHAIN] * len(batch), seconds * drafter

        for _ in range(30):
            selection.collect(batch, [4] * len(batch), ask)
            selection.judge(batch, AcceptResult([[0]] * len(batch), [[1, 9]] * len(batch)))
        selection.release(range(len(batch)))
        return count[1]

    def made() -> AdaptiveSelection:
        return AdaptiveSelection(2, lambda batch: MarginalValue(1.0, 0.1))

    alone, selection = asked(made(), ["b"], 0.01), made()
    for keys in (["a"], ["a", "b"]):
        asked(selection, keys, 100.0)
    assert asked(selection, ["b"], 0.01) == alone and asked(selection, ["a"], 100.0) < alone


def test_a_key_that_lost_much_costs_another_nothing_and_few_are_kept() -> None:
    budget = LossBudgets()
    before = budget.open(1, "b").left
    for _ in range(100):
        account = budget.open(1, "a")
        account.asked, account.nodes = True, 1
        budget.take(account)
        budget.note(1, StepTiming(2, 1.5, 0.0, 1, pure=True), 1.0, 1.5)
    assert budget.open(1, "a").paused and budget.open(1, "b").left == before > 0
    by_key = ByKey[list[int]](list)
    by_key.of(0).append(1)
    for key in range(MOST_KEYS - 1):
        by_key.of(key).append(2)
    assert by_key.of(0) == [1, 2]
    for key in range(1, MOST_KEYS + 1):
        by_key.of(key)
    assert by_key.of(0) == []


def test_threads_that_ask_at_once_get_the_same_value() -> None:
    """Else one of them would learn for itself, and what was learnt would be lost."""
    both = Barrier(2)

    def made() -> object:
        with suppress(BrokenBarrierError):
            both.wait(0.2)
        return object()

    kept = ByKey(made)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(kept.of, ["a", "a"])
    assert first is second is kept.of("a")
