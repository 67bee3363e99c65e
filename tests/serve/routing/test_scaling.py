"""The number of replicas that there should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslow.serve.engines.routing.report import QueueReport
from fastslow.serve.engines.routing.scaling import ScalingSettings, ScalingState, replicas_wanted

LIMITS = ScalingSettings(least=1, most=8, up_seconds=5, start_seconds=60, down_seconds=100, most_growth=2)
CALM = QueueReport()
SOME = QueueReport(quick_queue_seconds=0.5)
QUICK = QueueReport(quick_queue_seconds=3.0)
DEEP = QueueReport(deep=5, deep_queue_seconds=30.0)
SHORT = QueueReport(deep=5, deep_queue_seconds=10.0)

# Each look: seconds after the last one, the reports, and how many there should be then.
LOOKS: dict[str, tuple[int, list[tuple[int, list[QueueReport], int]]]] = {
    "queues that stay too long bring more": (2, [(0, [QUICK] * 2, 2), (6, [QUICK] * 2, 4)]),
    "a burst brings none": (2, [(0, [QUICK] * 2, 2), (3, [CALM] * 2, 2), (3, [QUICK] * 2, 2)]),
    "30 seconds for deep ones where 20 are allowed": (2, [(0, [DEEP] * 2, 2), (6, [DEEP] * 2, 3)]),
    "deep ones may wait for longer": (2, [(0, [SHORT] * 2, 2), (6, [SHORT] * 2, 2)]),
    "replicas kept from deep ones do not hide their queue": (
        4,
        [(0, [CALM] * 3 + [DEEP], 4), (6, [CALM] * 3 + [DEEP], 6)],
    ),
    "what starts may take its time": (
        2,
        [
            (0, [QUICK] * 2, 2),
            (6, [QUICK] * 2, 4),
            (20, [QUICK] * 2, 4),  # the two new ones do not report yet
            (3, [QUICK] * 4, 4),
            (6, [QUICK] * 4, 8),
            (6, [QUICK] * 8, 8),
        ],
    ),
    "what never starts is not waited for": (
        2,
        [(0, [QUICK] * 2, 2), (6, [QUICK] * 2, 4), (50, [QUICK] * 2, 4), (11, [QUICK] * 2, 8)],
    ),
    "short queues take one away slowly": (
        4,
        [(0, [CALM] * 4, 4), (99, [CALM] * 4, 4), (2, [CALM] * 4, 3), (99, [CALM] * 3, 3)] + [(2, [CALM] * 3, 2)],
    ),
    "between the limits nothing changes": (4, [(10, [SOME] * 4, 4)] * 50),
    "limits hold at once: none": (0, [(0, [], 1)]),
    "limits hold at once: too many": (20, [(0, [], 8)]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looks_at_replicas(name: str) -> None:
    present, looks = LOOKS[name]
    state, now = ScalingState(), 0.0
    for after, reports, wanted in looks:
        now += after
        present, state = replicas_wanted(reports, present, state, LIMITS, now)
        assert present == wanted, now


@given(st.integers(0, 20), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.integers(0, 12))))
def test_it_stays_within_its_limits(present: int, steps: list[tuple[float, float, int]]) -> None:
    state, now = ScalingState(), 0.0
    for queued, after, reporting in steps:
        before, now = present, now + after
        reports = [QueueReport(quick_queue_seconds=queued)] * reporting
        present, state = replicas_wanted(reports, present, state, LIMITS, now)
        assert min(8, before - 1) <= present <= max(1, 2 * before) and 1 <= present <= 8
