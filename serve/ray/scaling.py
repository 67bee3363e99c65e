"""`replicas_wanted` as an autoscaling policy of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ray.serve.config import AutoscalingContext

from fastslow.serve.engines.routing.report import QueueReport, ReplicaReport
from fastslow.serve.engines.routing.scaling import ScalingSettings, ScalingState, replicas_wanted

FIELDS = [field.name for field in fields(QueueReport)]


def autoscaling_stats(report: ReplicaReport) -> dict[str, float]:
    """Return the figures of a replica's `record_autoscaling_stats`; `QueueScaling` reads them."""
    return {name: float(getattr(report, name)) for name in FIELDS}


class QueueScaling:
    """The policy class for `AutoscalingPolicy(policy_function=QueueScaling)`. It waits by itself before it changes
    anything, so the deployment's `upscale_delay_s` and `downscale_delay_s` must be 0."""

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas that there should be, and what Ray is to remember."""
        settings = ScalingSettings(
            least=max(1, context.capacity_adjusted_min_replicas),
            most=max(1, context.capacity_adjusted_max_replicas),
        )
        wanted, state = replicas_wanted(
            _queues(context.aggregated_metrics or {}),
            context.target_num_replicas,
            ScalingState(**context.policy_state.get("queues", {})),
            settings,
            context.current_time or 0.0,
        )
        return wanted, {"queues": asdict(state)}


def _queues(metrics: Mapping[str, Mapping[Any, float]]) -> list[QueueReport]:
    """By replica, of those that report all of it."""
    ids = set.intersection(*(set(metrics.get(name, {})) for name in FIELDS))
    return [
        QueueReport(**{name: metrics[name][id] for name in FIELDS})  # type: ignore[arg-type]
        for id in ids
    ]
