"""Number of replicas that there should be."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from fastslow.serve.engines.routing.report import QueueReport


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Limits, and the seconds that requests may wait."""

    least: int = 1
    most: int = 8
    quick_queue_seconds: float = 1.0  # that quick requests may wait: more is felt
    deep_queue_seconds: float = 20.0  # likewise deep ones, which take long in any case
    # Fewer only where what is there could wait so much less: a replica less makes queues longer.
    calm: float = 0.25
    up_seconds: float = 5.0  # that queues are too long before there are more: one burst is no load
    start_seconds: float = 300.0  # in which new ones have to report, before more are asked for
    down_seconds: float = 300.0  # that they are short before there are fewer: a start takes minutes
    most_growth: float = 2.0  # times as many at once: queues do not say how many are missing


@dataclass(frozen=True, slots=True)
class ScalingState:
    """State that is kept from one look to the next; plain values, so that they go anywhere."""

    busy_since: float | None = None  # queues have been too long
    calm_since: float | None = None  # they have been short
    grown_at: float | None = None  # when more were last asked for


def replicas_wanted(
    reports: Collection[QueueReport],
    present: int,
    state: ScalingState,
    settings: ScalingSettings,
    now: float,
) -> tuple[int, ScalingState]:
    """Return the number of replicas that there should be, and the state for the next look. reports: the newest of each
    replica that reports. present: replicas that there are, or that are starting. now: seconds, by any clock."""
    bounded = min(max(present, settings.least), settings.most)
    if bounded != present or not reports:
        return bounded, replace(state, busy_since=None, calm_since=None)
    pressure = _pressure(reports, settings)
    if pressure <= 1:
        state = replace(state, busy_since=None)
        if pressure > settings.calm or present == settings.least:
            return present, replace(state, calm_since=None)
        since = now if state.calm_since is None else state.calm_since
        if now - since < settings.down_seconds:
            return present, replace(state, calm_since=since)
        return present - 1, replace(state, calm_since=now)
    since = now if state.busy_since is None else state.busy_since
    state, grown = replace(state, calm_since=None), state.grown_at
    if len(reports) < present and grown is not None and now - grown < settings.start_seconds:
        # what was just started has to show what it does before more are asked for
        return present, replace(state, busy_since=now)
    if now - since < settings.up_seconds or present == settings.most:
        return present, replace(state, busy_since=since)
    wanted = math.ceil(present * min(pressure, settings.most_growth))
    return min(wanted, settings.most), replace(state, busy_since=now, grown_at=now)


def _pressure(reports: Collection[QueueReport], settings: ScalingSettings) -> float:
    """The seconds that requests wait over those that they may, of the kind that is worse off.

    Deep ones wait at some replicas while others are kept for quick ones, which more replicas do not change.
    So they are averaged over the replicas that have some.
    """
    deep = [r.deep_queue_seconds for r in reports if r.deep]
    quick = [r.quick_queue_seconds for r in reports]
    return max(
        sum(deep) / max(1, len(deep)) / settings.deep_queue_seconds,
        sum(quick) / len(quick) / settings.quick_queue_seconds,
    )
