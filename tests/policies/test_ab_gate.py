"""The gate that compares steps with and without drafts: it comes close to the better way, whichever that is."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.engine.params import Speculation
from fastslow.engine.types import StepTiming, Tree
from fastslow.policies.speculation.ab_gate import ABGate
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.step_cost import StepCostCurve
from fastslow.policies.speculation.tuning import TUNING

BATCH = 8
DEAR = 1.01 * TUNING.gate_row_price  # a row's price, in tokens
DEAREST = 1.01 * TUNING.max_row_price
PHASE = TUNING.phase
REQUEST: Any = SimpleNamespace(groups=None, memory_key=None)


def played(
    gain: Callable[[int], float],
    speed: Callable[[int], float],
    steps: int = 1500,
    jitter: float = 0.1,
) -> tuple[float, float]:
    """Seconds of a run whose steps make a token each, over those of one that always drafts and of
    one that never does."""
    draws = random.Random(1)
    gate, taken, always, never = ABGate(), 0.0, 0.0, 0.0
    for step in range(steps):
        plain = speed(step) * draws.lognormvariate(0, jitter)
        drafted = plain / gain(step)
        own = drafted if gate.allows(BATCH, DEAR) else plain
        gate.note(BATCH, BATCH, own, pure=True)
        taken, always, never = taken + own, always + drafted, never + plain
    return taken / always, taken / never


@pytest.mark.parametrize("gain", [0.8, 0.95, 1.05, 2.0])
def test_it_comes_close_to_the_better_way(gain: float) -> None:
    over_drafting, over_plain = played(lambda step: gain, lambda step: 1.0)
    assert (over_plain if gain < 1 else over_drafting) < 1.03


def test_a_machine_whose_speed_changes_says_nothing_about_drafts() -> None:
    def speed(step: int) -> float:
        return 1.0 if step // 100 % 2 else 1.6

    over_drafting, _ = played(lambda step: 1.1, speed)
    _, over_plain = played(lambda step: 0.9, speed)
    assert max(over_drafting, over_plain) < 1.04


def test_it_changes_its_mind_with_the_texts() -> None:
    over_drafting, over_plain = played(lambda step: 0.85 if step < 700 else 1.3, lambda step: 1.0)
    best = 700 + 800 / 1.3
    always = 700 / 0.85 + 800 / 1.3
    assert over_drafting * always < 1.06 * best
    assert over_plain < 0.95


def test_sizes_are_judged_apart_and_a_held_up_step_says_little() -> None:
    gate = ABGate()
    for _ in range(400):
        gate.note(16, 16, 1.0 if gate.allows(16, DEAR) else 0.5, pure=True)
    assert not all(allowed(gate, 16, 0.5) for _ in range(PHASE))
    assert allowed(gate, 4, 1.0)
    for step in range(400):
        seconds = 1.0 if gate.allows(BATCH, DEAR) else 1.2
        gate.note(BATCH, BATCH, 500.0 if step == 20 else seconds, pure=True)
    ways = [allowed(gate, BATCH, 1.0) for _ in range(20 * PHASE)]
    assert sum(ways) > 0.8 * len(ways)


def allowed(gate: ABGate, batch: int, seconds: float) -> bool:
    before = gate.allows(batch, DEAR)
    gate.note(batch, batch, seconds, pure=True)
    return before


def controller_at(price: float) -> SpeculationController:
    """Of a machine where a row takes `price` tokens in a batch of BATCH."""
    curve = StepCostCurve([1, 256], [1.0, 1.0 + 255 * price / BATCH])
    return SpeculationController(lambda groups: curve)


@pytest.mark.parametrize(("price", "asked"), [(0.5 * DEAR, False), (2 * DEAR, True)])
def test_only_gate_row_prices_are_compared(price: float, asked: bool) -> None:
    controller = controller_at(price)
    policies = [controller.policy(Speculation(), "drafter") for _ in range(BATCH)]
    batch: list[Any] = [REQUEST] * BATCH
    plain = 0
    for _ in range(60 * PHASE):
        plans = [policy.plan(REQUEST, BATCH) for policy in policies]
        assert all(plans) or not any(plans), "a batch goes one way"
        seconds = 2.0 if any(plans) else 1.0
        plain += not any(plans)
        controller.note(batch, StepTiming(BATCH, seconds, 0.0, BATCH, pure=True))
        for policy, nodes in zip(policies, plans):
            policy.record(Tree.chain(range(min(nodes, 1))), [0][:nodes])
    assert (plain > 36 * PHASE) == asked


@pytest.mark.parametrize(("gain", "drafts"), [(0.8, False), (1.2, True)])
def test_where_rows_are_dearest_it_begins_without(gain: float, drafts: bool) -> None:
    gate = ABGate()
    ways = []
    for _ in range(200 * PHASE):
        ways.append(gate.allows(BATCH, DEAREST))
        gate.note(BATCH, BATCH, 1.0 / gain if ways[-1] else 1.0, pure=True)
    assert not any(ways[: 2 * PHASE])
    assert (sum(ways[-50 * PHASE :]) > 25 * PHASE) == drafts


def test_steps_that_read_prompts_are_no_measure() -> None:
    gate = ABGate()
    for _ in range(60 * PHASE):
        gate.note(BATCH, BATCH, 2.0 if gate.allows(BATCH, DEAR) else 1.0, pure=False)
        assert gate.allows(BATCH, DEAR)
