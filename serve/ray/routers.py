"""Request routers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.config import RequestRouterConfig

from fastslow.serve.ray.replicas import ROUTERS


def router_config(
    name: str, settings: Mapping[str, Any] | None = None, period: float = 1.0
) -> RequestRouterConfig:
    """How Ray Serve is to route.

    Args:
        name: of ROUTERS.
        settings: keyword arguments of that router; of "fastslow" the fields of `RoutingSettings`.
        period: seconds between two reports of a replica.
    """
    return RequestRouterConfig(
        request_router_class=ROUTERS[name],
        request_router_kwargs=dict(settings or {}),
        request_routing_stats_period_s=period,
        request_routing_stats_timeout_s=10 * period,
    )
