"""`replicas_wanted` as an autoscaling policy of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.scaling import ScalingSettings, ScalingState, replicas_wanted

DEEP, DEEP_SECONDS, QUICK_SECONDS = "deep", "deep_queue_seconds", "quick_queue_seconds"


@dataclass(frozen=True, slots=True)
class ReplicaQueues:
    """What of a report scaling needs."""

    deep: int
    deep_queue_seconds: float
    quick_queue_seconds: float


def autoscaling_stats(report: ReplicaReport) -> dict[str, float]:
    """What a replica's `record_autoscaling_stats` gives; `QueueScaling` reads it."""
    return {
        DEEP: float(report.deep),
        DEEP_SECONDS: report.deep_queue_seconds,
        QUICK_SECONDS: report.quick_queue_seconds,
    }


class QueueScaling:
    """The policy class for `AutoscalingPolicy(policy_function=QueueScaling, policy_kwargs=...)`.

    It waits by itself before it changes anything, so the deployment's `upscale_delay_s` and
    `downscale_delay_s` must be 0. Metrics should be young: its `look_back_period_s` and `metrics_interval_s`
    about a second.

    Args:
        settings: fields of `ScalingSettings`, but for `least` and `most`: the deployment has its own.
    """

    def __init__(self, **settings: float) -> None:
        self._settings = settings

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and what Ray is to remember."""
        settings = ScalingSettings(
            least=max(1, context.capacity_adjusted_min_replicas),
            most=max(1, context.capacity_adjusted_max_replicas),
            **self._settings,
        )
        wanted, state = replicas_wanted(
            _queues(context.aggregated_metrics or {}),
            context.target_num_replicas,
            ScalingState(**context.policy_state.get("queues", {})),
            settings,
            context.current_time or 0.0,
        )
        return wanted, {"queues": asdict(state)}


def _queues(metrics: Mapping[str, Mapping[Any, float]]) -> list[ReplicaQueues]:
    """By replica, of those that report all of it."""
    deep, deep_seconds, quick_seconds = (
        metrics.get(name, {}) for name in (DEEP, DEEP_SECONDS, QUICK_SECONDS)
    )
    return [
        ReplicaQueues(int(deep[id]), deep_seconds[id], quick_seconds[id])
        for id in deep
        if id in deep_seconds and id in quick_seconds
    ]
