"""The referee of drafting: it comes close to the better way, whichever that is."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fastslow.engine.types import Stepped, Tree
from fastslow.policies.clock import DEAR, Clock
from fastslow.policies.length import AdaptiveLength
from fastslow.policies.odds import Odds
from fastslow.policies.pace import Pace
from fastslow.policies.referee import PHASE, Referee

BATCH = 8
REQUEST: Any = SimpleNamespace(groups=None)


def played(
    gain: Callable[[int], float],
    speed: Callable[[int], float],
    steps: int = 1500,
    noise: float = 0.1,
) -> tuple[float, float]:
    """Seconds of a run whose steps make a token each, over those of one that always drafts and of
    one that never does."""
    draws = random.Random(1)
    referee, taken, always, never = Referee(), 0.0, 0.0, 0.0
    for step in range(steps):
        plain = speed(step) * draws.lognormvariate(0, noise)
        drafted = plain / gain(step)
        own = drafted if referee.allows(BATCH) else plain
        referee.note(BATCH, BATCH, own)
        taken, always, never = taken + own, always + drafted, never + plain
    return taken / always, taken / never


@pytest.mark.parametrize("gain", [0.8, 0.9, 0.95])
def test_drafts_that_lose_hardly_cost_anything(gain: float) -> None:
    _, over_plain = played(lambda step: gain, lambda step: 1.0)
    assert over_plain < 1.03


@pytest.mark.parametrize("gain", [1.05, 1.2, 2.0])
def test_drafts_that_pay_stay(gain: float) -> None:
    over_drafting, _ = played(lambda step: gain, lambda step: 1.0)
    assert over_drafting < 1.03


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
    referee = Referee()
    for _ in range(400):
        referee.note(16, 16, 1.0 if referee.allows(16) else 0.5)
    assert not all(allowed(referee, 16, 0.5) for _ in range(PHASE))
    assert allowed(referee, 4, 1.0)
    for step in range(400):
        seconds = 1.0 if referee.allows(BATCH) else 1.2
        referee.note(BATCH, BATCH, 500.0 if step == 20 else seconds)
    ways = [allowed(referee, BATCH, 1.0) for _ in range(20 * PHASE)]
    assert sum(ways) > 0.8 * len(ways)


def allowed(referee: Referee, batch: int, seconds: float) -> bool:
    before = referee.allows(batch)
    referee.note(batch, batch, seconds)
    return before


@pytest.mark.parametrize(("slope", "asked"), [(0.5 * DEAR, False), (2 * DEAR, True)])
def test_only_dear_rows_are_refereed(slope: float, asked: bool) -> None:
    clock = Clock(lambda groups: Pace([1, 256], [1.0, 1.0 + 255 * slope / BATCH]))
    policies = [AdaptiveLength(8, Odds(), clock, "drafter") for _ in range(BATCH)]
    batch: list[Any] = [REQUEST] * BATCH
    stopped = 0
    for _ in range(60 * PHASE):
        plans = [policy.plan(REQUEST, BATCH) for policy in policies]
        drafting = clock.may_draft(None, BATCH)
        assert drafting or not any(plans)
        stopped += not drafting
        clock.note(batch, Stepped(BATCH, 2.0 if drafting else 1.0, 0.0, BATCH, pure=True))
        for policy in policies:
            policy.record(Tree(), ())
    assert (stopped > 36 * PHASE) == asked


@pytest.mark.parametrize(("gain", "drafts"), [(0.8, False), (1.2, True)])
def test_where_rows_are_dearest_it_begins_without(gain: float, drafts: bool) -> None:
    referee = Referee()
    ways = []
    for _ in range(200 * PHASE):
        ways.append(referee.allows(BATCH, likely=False))
        referee.note(BATCH, BATCH, 1.0 / gain if ways[-1] else 1.0)
    assert not any(ways[: 2 * PHASE])
    assert (sum(ways[-50 * PHASE :]) > 25 * PHASE) == drafts


def test_steps_that_read_prompts_are_no_measure() -> None:
    clock = Clock(lambda groups: Pace([1, 256], [1.0, 1.0 + 255 * 2 * DEAR / BATCH]))
    batch: list[Any] = [REQUEST] * BATCH
    for _ in range(60 * PHASE):
        seconds = 2.0 if clock.may_draft(None, BATCH) else 1.0
        clock.note(batch, Stepped(BATCH, seconds, 0.0, BATCH, pure=False))
        assert clock.may_draft(None, BATCH)
