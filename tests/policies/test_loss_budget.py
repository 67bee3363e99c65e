"""The limit of what drafting may lose: a request whose drafts do not pay soon rests, one whose drafts pay goes on."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.engine.params import Speculation
from fastslow.engine.types import StepTiming, Tree
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.loss_budget import LossBudgets, RequestLossBudget
from fastslow.policies.speculation.planner import AdaptiveLength
from fastslow.policies.speculation.step_cost import StepCostCurve
from fastslow.policies.speculation.tuning import TUNING

REQUEST: Any = SimpleNamespace(groups=None, memory_key=None)
NODE = Tree.chain([1])


def answered(
    controller: SpeculationController, chance: float, price: float, running: int = 1, tokens: int = 96,
    asking: float = 0.0, draws: random.Random | None = None,
) -> tuple[float, int]:  # fmt: skip
    """Plain steps that answers of this many tokens take over plain decoding's, and how many nodes ran. chance: of a
    node to be accepted. price: of a row, in
    tokens of one request. asking: of the batch being asked, in plain steps."""
    draws = draws or random.Random(3)
    policies = [controller.policy(Speculation(), "drafter") for _ in range(running)]
    left, seconds, steps, ran = [tokens] * running, 0.0, 0.0, 0
    while min(left) > 0:
        trees = [NODE if policy.plan(REQUEST, running) else Tree() for policy in policies]
        nodes = sum(len(tree.tokens) for tree in trees)
        accepted = [[0] if tree.tokens and draws.random() < chance else [] for tree in trees]
        for policy, tree, path in zip(policies, trees, accepted):
            policy.record(tree, path)
        drafting = asking if nodes else 0.0
        step = StepTiming(running + nodes, 1.0 + price * nodes / running, drafting, 0, pure=True)
        controller.note([REQUEST] * running, step)
        seconds, steps, ran = seconds + step.seconds + drafting, steps + 1, ran + nodes
        left = [n - 1 - len(path) for n, path in zip(left, accepted)]
    made = tokens - sum(left) / running
    return seconds / made, ran


def controller_at(price: float, running: int = 1) -> SpeculationController:
    curve = StepCostCurve([1, running, 300], [0.99, 1.0, 1.0 + price * (300 - running) / running])
    return SpeculationController(lambda groups: curve)


@pytest.mark.parametrize("price", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("running", [1, 4, 8, 64])
@pytest.mark.parametrize("tokens", [66, 96])
def test_drafts_that_are_never_accepted_cost_little_in_every_answer(price: float, running: int, tokens: int) -> None:
    controller = controller_at(price, running)
    found = [answered(controller, 0.0, price, running, tokens, 0.3)[0] for _ in range(10)]
    assert max(found) < 1 / 0.97
    assert max(found) > 1.0, "they are tried"


@pytest.mark.parametrize("running", [1, 8])
def test_drafts_that_pay_are_not_held_back(running: int) -> None:
    controller, price = controller_at(0.1, running), 0.1
    draws = random.Random(1)
    found = [answered(controller, 0.8, price, running, draws=draws) for _ in range(10)]
    ideal = (1 + price) / 1.8
    assert sum(times for times, _ in found) / len(found) < 1.05 * ideal


def test_a_request_that_rests_tries_again_with_what_was_refilled() -> None:
    controller = controller_at(0.5)
    _, few = answered(controller, 0.0, 0.5, tokens=64)
    times, more = answered(controller, 0.0, 0.5, tokens=2000)
    assert few + 10 < more < 2000 * TUNING.loss_refill / 0.5 + few + 3 and times < 1 + 2 * TUNING.loss_refill


def test_what_others_gained_pays_for_the_first_drafts_of_a_new_request() -> None:
    budgets = LossBudgets()
    for _ in range(20):
        step(budgets, budgets.open(1), 1, accepted=0)
    assert budgets.open(1).paused and not budgets.open(8).paused
    budget = budgets.open(1)
    for _ in range(30):
        step(budgets, budget, 1, accepted=1)
    assert budget.left == TUNING.most_loss
    assert budgets.open(1).left == 2 * TUNING.first_loss, "the shared budget is full"


@pytest.mark.parametrize("running", [1, 8, 32])
def test_no_request_rests_for_good(running: int) -> None:
    """Opened at an empty shared budgets, and after a step that was held up."""
    budgets = LossBudgets()
    for _ in range(50):
        step(budgets, budgets.open(running), running, accepted=0)
    budget = budgets.open(running)
    budget.asked, budget.nodes, budget.accepted = True, 0, 0
    budgets.take(budget)
    budgets.note(running, StepTiming(running, 2.0, 1.0, 1, pure=True), 1.0, 1.0)
    assert budget.paused
    budget.asked = False
    for _ in range(6000):
        budgets.take(budget)
        budgets.note(running, StepTiming(running, 1.0, 0.0, 1, pure=True), 1.0, 1.0)
    assert not budget.paused


def test_the_shared_budget_is_fuller_than_at_first_by_gains_alone() -> None:
    budgets = LossBudgets()
    first = budgets.open(1)
    for _ in range(1000):
        budgets.take(first)
        budgets.note(1, StepTiming(1, 1.0, 0.0, 1, pure=True), 1.0, 1.0)
    assert budgets.open(1).left == pytest.approx(TUNING.first_level * TUNING.first_loss, rel=0.02)


def step(budgets: LossBudgets, budget: RequestLossBudget, running: int, accepted: int) -> None:
    """A step of the requests that run, of which one has a node; it takes half as long again."""
    budget.asked, budget.nodes, budget.accepted = True, 1, accepted
    budgets.take(budget)
    seconds = 1.0 + 0.5 / running
    budgets.note(running, StepTiming(running + 1, seconds, 0.0, 1, pure=True), 1.0, seconds)


def test_a_delay_and_a_step_that_reads_a_prompt_say_nothing() -> None:
    budgets = LossBudgets()
    budget = budgets.open(1)
    budget.asked, budget.nodes, budget.accepted = True, 1, 1
    for pure, seconds in ((False, 50.0), (True, 50.0)):
        budgets.take(budget)
        budgets.note(1, StepTiming(2, seconds, 0.0, 2, pure), 1.0, 1.1)
        assert budget.left > 0
    late = budgets.open(1)
    for drafting in (0.1, 0.1, 50.0):
        late.asked, late.nodes, late.accepted = True, 0, 0
        budgets.take(late)
        budgets.note(1, StepTiming(1, 1.0, drafting, 1, pure=True), 1.0, 1.0)
    assert late.left > 0


def controller_of_rows() -> SpeculationController:
    curve = StepCostCurve([1, 2, 4, 64], [1.0, 1.2, 1.6, 9.0])
    return SpeculationController(lambda groups: curve)


def test_steps_right_after_a_prompt_are_booked_and_learnt_as_usual_ones() -> None:
    """They take up to twice as long, with drafts and without."""
    left = []
    for cold in (1.0, 2.0):
        controller = controller_of_rows()
        policy = controller.policy(Speculation(), "drafter")
        for _ in range(2):  # asking takes 0.1
            policy.plan(REQUEST, 1)
            policy.record(Tree(), [])
            controller.note([REQUEST], StepTiming(1, 1.0, 0.1, 1, pure=True))
        controller.note([REQUEST], StepTiming(60, 9.0, 0.0, 1, pure=False))
        for _ in range(TUNING.cold_steps):
            policy.plan(REQUEST, 1)
            policy.record(NODE, [])
            controller.note([REQUEST], StepTiming(2, cold * 1.2, cold * 0.1, 1, pure=True))
        assert isinstance(policy, AdaptiveLength) and policy._loss is not None
        left.append(policy._loss.left)
        assert controller.seconds(None, 2) == pytest.approx(1.2, rel=0.05)
    assert left[0] == pytest.approx(left[1])


def test_noise_of_steps_after_a_question_makes_rows_no_cheaper() -> None:
    controller, draws = controller_of_rows(), random.Random(2)
    for turn in range(3000):
        rows = (1, 1, 2)[turn % 3]
        seconds = {1: 1.0, 2: 1.2}[rows] * draws.uniform(0.85, 1.15)
        drafting = 0.2 if turn % 3 else 0.0
        controller.note([REQUEST], StepTiming(rows, seconds, drafting, 1, pure=True))
    assert controller.seconds(None, 2) - controller.seconds(None, 1) == pytest.approx(0.2, abs=0.05)


def test_what_a_step_takes_more_after_a_question_is_no_price_of_rows() -> None:
    controller = controller_of_rows()
    for turn in range(200):
        rows = (1, 2, 4)[turn % 3]
        seconds = {1: 1.0, 2: 1.2, 4: 1.6}[rows] + 0.2
        controller.note([REQUEST], StepTiming(rows, seconds, 0.2, 1, pure=True))
    for rows, seconds in ((1, 1.0), (2, 1.2), (4, 1.6)):
        assert controller.seconds(None, rows) == pytest.approx(seconds, rel=0.03)
