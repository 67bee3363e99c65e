"""Waits that grow, and the mean that forgets."""

from __future__ import annotations

import pytest

from fastslow.policies.speculation.backoff import Backoff, RunningMean


def tries(backoff: Backoff, turns: int, growth: float = 2) -> list[int]:
    """The turns in which something is tried, always in vain."""
    found = []
    for turn in range(turns):
        if backoff.due:
            found.append(turn)
            backoff.again(growth)
        else:
            backoff.skip()
    return found


@pytest.mark.parametrize(
    ("backoff", "turns", "growth", "tried"),
    [
        (Backoff(2, 8, wait=0), 40, 2, [0, 3, 8, 17, 26, 35]),
        (Backoff(2, 8, wait=2), 20, 2, [2, 7, 16]),
        pytest.param(Backoff(3, 8, wait=5), 20, 2, [5, 12], id="the first may be longer"),
        pytest.param(Backoff(3, 3, wait=3), 13, 1, [3, 7, 11], id="a wait need not grow"),
    ],
)
def test_waits_grow_up_to_the_longest(
    backoff: Backoff, turns: int, growth: float, tried: list[int]
) -> None:
    assert tries(backoff, turns, growth) == tried


def test_a_wait_is_rounded_up_and_may_be_longer_once() -> None:
    backoff = Backoff(2, 8, wait=2)
    backoff.again(1.6)
    assert backoff.wait == 4
    backoff.again(10, most=20)
    assert backoff.wait == 20


@pytest.mark.parametrize(("wait", "then"), [(0, 2), (2, 4)])
def test_what_pays_makes_it_eager_again(wait: int, then: int) -> None:
    backoff = Backoff(2, 64, wait=2)
    tries(backoff, 50)
    backoff.restart(wait)
    assert backoff.wait == wait and backoff.due == (wait == 0)
    backoff.again(2)
    assert backoff.wait == then


def test_a_mean_forgets_what_is_older_than_its_memory() -> None:
    mean = RunningMean(0.0, memory=4)
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == 3.0
    for _ in range(100):
        mean.add(7.0)
    assert mean.value == pytest.approx(7.0) and mean.count == 4
    mean.add(3.0)
    assert mean.value == pytest.approx(6.0)
    prior = RunningMean(1.0, memory=10, count=1)
    prior.add(0.0)
    assert prior.value == 0.5


def test_a_time_that_was_held_up_counts_as_a_few_usual_ones() -> None:
    mean = RunningMean(0.0, memory=4)
    mean.add_time(50.0, held_up=3.0)
    assert mean.value == 50.0, "nothing is usual yet"
    mean.add_time(5000.0, held_up=3.0)
    assert mean.value == pytest.approx(100.0)
