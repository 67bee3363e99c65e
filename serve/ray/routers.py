"""Request routers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.config import RequestRouterConfig

from fastslow.engine.params import nearest, shown

ROUTERS = {
    "fastslow": "fastslow.serve.ray.router:FastSlowRouter",
    # Ray's own, from where it lies: its public name, ray.serve.llm.request_router, needs vLLM or SGLang
    "prefix": (
        "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router:"
        "PrefixCacheAffinityRouter"
    ),
    "pow2": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",  # Ray's default
}


def router_config(
    name: str, settings: Mapping[str, Any] | None = None, period: float = 1.0
) -> RequestRouterConfig:
    """How Ray Serve is to route.

    Args:
        name: of ROUTERS.
        settings: keyword arguments of that router; of "fastslow" the fields of `RoutingSettings`.
        period: seconds between two reports of a replica.

    Raises:
        ValueError: there is no router of this name.
    """
    if name not in ROUTERS:
        raise ValueError(f"router={shown(name)} is unknown{nearest(name, ROUTERS)}")
    return RequestRouterConfig(
        request_router_class=ROUTERS[name],
        request_router_kwargs=dict(settings or {}),
        request_routing_stats_period_s=period,
        request_routing_stats_timeout_s=10 * period,
    )
