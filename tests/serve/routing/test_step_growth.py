"""How steps grow, learned from reports."""

from __future__ import annotations

from random import Random

import pytest

from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.serve.engines.routing.step_growth import StepGrowth

BASE = 0.03


def learned(row: float, most: int, noise: float = 0.0, reports: int = 400) -> StepGrowth:
    """After reports of steps with 1 to `most` answers, that take BASE and `row` for each."""
    random, growth = Random(1), StepGrowth(RoutingSettings())
    for _ in range(reports):
        answers = random.randint(1, most)
        growth.note(answers, BASE + row * answers + noise * random.random())
    return growth


@pytest.mark.parametrize(("row", "most"), [(0.0001, 256), (0.001, 64), (0.003, 8), (0.02, 8)])
def test_a_line_is_found(row: float, most: int) -> None:
    growth = learned(row, most)
    assert growth.known
    assert growth.seconds == pytest.approx(row, rel=0.3)
    assert growth.answers_within(BASE + row * most) == pytest.approx(most, rel=0.1)


def test_prompts_in_some_steps_do_not_hide_it() -> None:
    assert learned(0.0003, 200, noise=0.05).seconds == pytest.approx(0.0003, rel=0.3)


def test_before_the_reports_tell_a_small_machine_is_assumed() -> None:
    growth = StepGrowth(RoutingSettings())
    assert growth.seconds == float("inf")
    for _ in range(100):
        growth.note(3, 0.05)
    assert not growth.known
    assert growth.seconds == pytest.approx(0.1 * 0.05)


def test_an_answer_adds_no_more_than_its_share_of_a_step() -> None:
    growth = StepGrowth(RoutingSettings())
    growth.note(100, 0.05)
    assert growth.seconds == pytest.approx(0.05 / 100)


def test_it_is_never_nothing() -> None:
    growth = StepGrowth(RoutingSettings())
    for answers in range(1, 200):
        growth.note(answers, 0.1 - answers * 0.0001)  # what chance may show
    assert 0 < growth.seconds < 0.0002
    assert growth.answers_within(0.0) == 0.0


def test_idle_replicas_tell_nothing() -> None:
    growth = StepGrowth(RoutingSettings())
    growth.note(0, 0.05)
    growth.note(5, 0.0)
    assert growth.seconds == float("inf")


def test_what_changed_is_learned_again() -> None:
    growth, random = learned(0.0001, 100), Random(2)
    for _ in range(5000):
        answers = random.randint(1, 100)
        growth.note(answers, BASE + 0.0005 * answers)
    assert growth.seconds == pytest.approx(0.0005, rel=0.1)


def test_a_step_without_answers_takes_no_less_than_nothing() -> None:
    """Steps that grow faster than their answers would say so, taken for a straight line."""
    growth = StepGrowth(RoutingSettings())
    for answers in range(1, 101):
        growth.note(answers, 0.0001 * answers**2)
    assert growth.known and growth.answers_within(0.0) == pytest.approx(0.0, abs=1e-9)
