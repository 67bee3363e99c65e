"""How many replicas are kept for quick requests, as their reports change."""

from __future__ import annotations

import itertools

import pytest
from routing_tools import Clock, chooser_of, deep, quick, report

from fastslow.serve.engines.routing.chooser import ReplicaChooser

IDS = [f"r{n}" for n in range(8)]
BASE, ROW, PLACES = 0.03, 0.0001, 256  # a large machine


class Reports:
    """A router of eight large machines that hears what a test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.chooser: ReplicaChooser = chooser_of(IDS, self.clock)
        self.chooser.rank(quick("hello"))  # its target is 100 ms

    def tell(
        self,
        quick_ones: int,
        deep_ones: int,
        seconds: int,
        step_of_kept: float = 0.0,
        quick_waits: float = 0.0,
    ) -> int:
        """How many are kept after some seconds: all quick ones are on them, and so many deep ones on each other."""
        for _ in range(seconds):
            self.clock.now += 1
            each = round(quick_ones / max(1, len(self.chooser.kept)))
            for id in IDS:
                is_kept = id in self.chooser.kept
                answers = each if is_kept else deep_ones
                step = step_of_kept if is_kept and step_of_kept else BASE + ROW * answers
                told = report(
                    self.clock.now,
                    running={"any": answers},
                    urgent=each * is_kept,
                    deep=0 if is_kept else deep_ones,
                    step_seconds={"any": step},
                    places=PLACES,
                    quick_queue_seconds=quick_waits * is_kept,
                    deep_queue_seconds=10.0 * (answers >= PLACES),
                )
                self.chooser.report(id, told)
            self.chooser.rank(deep("think"))
        return len(self.chooser.kept)


def test_large_machines_keep_one_for_many_quick_ones() -> None:
    assert Reports().tell(100, 80, 60) == 1


def test_as_many_as_fit_into_steps_of_half_the_target() -> None:
    reports = Reports()
    assert reports.tell(100, 80, 60) == 1
    assert reports.tell(200, 80, 3) == 2, "1.5 times as many may come, and take all places of one"


@pytest.mark.parametrize("told", [{"step_of_kept": 0.09}, {"quick_waits": 0.5}])
def test_one_more_after_another_while_the_target_is_near(told: dict[str, float]) -> None:
    reports = Reports()
    assert reports.tell(40, 80, 60) == 1
    kept = [reports.tell(20, 80, 5, **told) for _ in range(8)]
    assert all(0 <= later - sooner <= 1 for sooner, later in itertools.pairwise(kept))
    assert kept[-1] == 7, "all but one"


def test_they_stay_until_deep_ones_wait_and_then_go_back_one_by_one() -> None:
    reports = Reports()
    reports.tell(20, 80, 60)
    many = reports.tell(20, 80, 60, quick_waits=0.5)
    assert many == 7
    stayed = reports.tell(2, 80, 60)
    assert stayed >= many - 1, "fewer quick ones need one less"
    less = reports.tell(2, PLACES, 11)
    assert stayed - 3 <= less <= stayed - 2
    assert reports.tell(2, PLACES, 60) == 1


def test_routers_that_hear_the_same_agree() -> None:
    first, second = Reports(), Reports()
    for quick_ones, deep_ones in ((20, 50), (150, 200), (90, PLACES)):
        one, other = first.tell(quick_ones, deep_ones, 30), second.tell(quick_ones, deep_ones, 30)
        assert one == other
        assert first.chooser.kept == second.chooser.kept
