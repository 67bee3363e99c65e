"""Waits that grow, and the mean that forgets."""

import pytest

from fastslow.policies.speculation.backoff import Backoff, RunningMean


@pytest.mark.parametrize(("backoff", "turns", "growth", "wanted"), [
    (Backoff(2, 8, wait=0), 40, 2, [0, 3, 8, 17, 26, 35]),
    pytest.param(Backoff(3, 8, wait=5), 20, 2, [5, 12], id="the first may be longer"),
    pytest.param(Backoff(3, 3, wait=3), 13, 1, [3, 7, 11], id="a wait need not grow"),
    pytest.param(Backoff(2, 8, wait=2), 10, 1.6, [2, 7], id="it is rounded up"),
])  # fmt: skip
def test_waits_grow_up_to_the_longest_until_it_pays(
    backoff: Backoff, turns: int, growth: float, wanted: list[int]
) -> None:
    tried = []
    for turn in range(turns):
        if backoff.due:
            tried.append(turn)
            backoff.again(growth)
        else:
            backoff.skip()
    assert tried == wanted
    for wait in (0, backoff.first):
        backoff.restart(wait)
        assert backoff.wait == wait and backoff.due == (wait == 0)
        backoff.again(2)
        assert backoff.wait == min(max(2 * wait, backoff.first), backoff.most)


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
    late = RunningMean(0.0, memory=4)
    late.add_time(50.0, held_up=3.0)
    assert late.value == 50.0, "nothing is usual yet"
    late.add_time(5000.0, held_up=3.0)
    assert late.value == pytest.approx(100.0)
