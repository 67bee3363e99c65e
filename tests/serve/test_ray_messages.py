"""What passes through Ray on its way: figures for its autoscaler, and why a replica could not load its model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from routing_tools import report

from fastslow.serve.ray.load_failure import load_failure, told_error
from fastslow.serve.ray.scaling import QueueScaling, autoscaling_stats


def context(now: float, state: dict[str, Any], *stats: dict[str, float]) -> Any:
    """What Ray gives its policy: each figure by replica. A new replica has told some of them only."""
    names = {name for one in stats for name in one}
    metrics = {
        name: {f"r{n}": one[name] for n, one in enumerate(stats) if name in one} for name in names
    }
    return SimpleNamespace(
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        aggregated_metrics=metrics,
        target_num_replicas=2,
        policy_state=state,
        current_time=now,
    )


def test_the_policy_waits_and_then_asks_for_more() -> None:
    busy = autoscaling_stats(report(1.0, quick_queue_seconds=9.0, deep=1, deep_queue_seconds=1.0))
    policy = QueueScaling(up_seconds=5.0)
    state: dict[str, Any] = {}
    wanted = []
    for now in (100.0, 103.0, 106.0):
        count, state = policy(context(now, state, busy, busy))
        wanted.append(count)
    assert wanted == [2, 2, 4]


def test_replicas_that_told_a_part_of_their_figures_are_left_out() -> None:
    calm = autoscaling_stats(report(1.0))
    for name in calm:
        part = {key: 99.0 for key in calm if key != name}
        for order in ((calm, part), (part, calm), (part,)):
            count, state = QueueScaling(up_seconds=0.0)(context(100.0, {}, *order))
            assert count == 2 and state["queues"]["busy_since"] is None
    assert QueueScaling()(context(100.0, {}))[0] == 2


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_the_latest_reason_comes_through_the_status_of_a_deployment(kind: type[Exception]) -> None:
    first, last = (
        load_failure(ValueError("an older one")),
        load_failure(kind("groups=9 is too much")),
    )
    said = f"Traceback (most recent call last)\n  {first}\nRetrying.\nTraceback\n  RuntimeError: {last}\n"
    told = told_error(said)
    assert type(told) is kind and str(told) == "groups=9 is too much"


def test_a_reason_of_rays_own_is_its_last_line() -> None:
    assert str(told_error("much\n\n  no node has 9 CPUs \n")).endswith("no node has 9 CPUs")
    assert "no reason" in str(told_error(""))
