"""How many replicas there should be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_tools import report

from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.scaling import ScalingSettings, ScalingState, replicas_wanted

LIMITS = ScalingSettings(
    least=1, most=8, up_seconds=5, start_seconds=60, down_seconds=100, most_growth=2
)


class Looks:
    """Looks at a deployment, with a clock of its own."""

    def __init__(self, present: int, limits: ScalingSettings = LIMITS) -> None:
        self.present, self.limits = present, limits
        self.state, self.now = ScalingState(), 0.0

    def look(self, reports: list[ReplicaReport], after: float = 0.0) -> int:
        self.now += after
        self.present, self.state = replicas_wanted(
            reports, self.present, self.state, self.limits, self.now
        )
        return self.present


def waits(count: int, **fields: Any) -> list[ReplicaReport]:
    return [report(1.0, **fields) for _ in range(count)]


QUICK = {"waiting": {"fast": 5}, "quick_queue_seconds": 3.0}
DEEP = {"waiting": {"deep": 5}, "deep": 5, "deep_queue_seconds": 30.0}


def test_queues_that_stay_too_long_bring_more() -> None:
    looks = Looks(2)
    assert looks.look(waits(2, **QUICK)) == 2  # a burst
    assert looks.look(waits(2, **QUICK), 6) == 4


def test_deep_ones_may_wait_for_longer() -> None:
    looks = Looks(2)
    looks.look(waits(2, **DEEP))
    assert looks.look(waits(2, **DEEP), 6) == 3  # 30 seconds where 20 are allowed
    looks = Looks(2)
    short = DEEP | {"deep_queue_seconds": 10.0}
    looks.look(waits(2, **short))
    assert looks.look(waits(2, **short), 6) == 2


def test_replicas_that_are_kept_from_deep_ones_do_not_hide_their_queue() -> None:
    looks = Looks(4)
    reports = waits(3) + waits(1, **DEEP)
    looks.look(reports)
    assert looks.look(reports, 6) > 4


def test_a_burst_brings_none() -> None:
    looks = Looks(2)
    looks.look(waits(2, **QUICK))
    looks.look(waits(2), 3)
    assert looks.look(waits(2, **QUICK), 3) == 2


def test_what_starts_may_take_its_time() -> None:
    looks = Looks(2)
    looks.look(waits(2, **QUICK))
    assert looks.look(waits(2, **QUICK), 6) == 4
    assert looks.look(waits(2, **QUICK), 20) == 4  # the two new ones do not report yet
    assert looks.look(waits(4, **QUICK), 3) == 4
    assert looks.look(waits(4, **QUICK), 6) == 8
    assert looks.look(waits(8, **QUICK), 6) == 8


def test_what_never_starts_is_not_waited_for() -> None:
    looks = Looks(2)
    looks.look(waits(2, **QUICK))
    looks.look(waits(2, **QUICK), 6)
    looks.look(waits(2, **QUICK), 50)
    looks.look(waits(2, **QUICK), 11)
    assert looks.look(waits(2, **QUICK), 6) == 8


def test_short_queues_take_one_away_slowly() -> None:
    looks = Looks(4)
    assert looks.look(waits(4)) == 4
    assert looks.look(waits(4), 99) == 4
    assert looks.look(waits(4), 2) == 3
    assert looks.look(waits(3), 99) == 3
    assert looks.look(waits(3), 2) == 2


def test_between_the_limits_nothing_changes() -> None:
    looks = Looks(4)
    some = QUICK | {"quick_queue_seconds": 0.5}
    for _ in range(50):
        assert looks.look(waits(4, **some), 10) == 4


@pytest.mark.parametrize(("present", "wanted"), [(0, 1), (1, 1), (20, 8)])
def test_limits_hold_at_once(present: int, wanted: int) -> None:
    assert Looks(present).look([]) == wanted


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"least": 0}, "least=0"),
        ({"least": 3, "most": 2}, "least=3"),
        ({"quick_queue_seconds": 0.0}, "quick_queue_seconds=0.0"),
        ({"most_growth": 1.0}, "most_growth=1.0"),
        ({"calm": 1.0}, "calm=1.0"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScalingSettings(**fields)


@given(
    st.integers(0, 20), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.integers(0, 12)))
)
def test_it_stays_within_its_limits(present: int, steps: list[tuple[float, float, int]]) -> None:
    looks = Looks(present)
    for queued, after, reporting in steps:
        before = looks.present
        looks.look(waits(reporting, quick_queue_seconds=queued), after)
        assert 1 <= looks.present <= 8
        assert looks.present <= max(1, 2 * before)
        assert looks.present >= min(8, before - 1)
