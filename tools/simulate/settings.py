"""What is simulated besides the trace and the costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastslow.serve.engines.routing.scaling import ScalingSettings
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.tools.simulate.costs import MOST_OTHERS
from fastslow.tools.simulate.routers import OURS, check_router

MOST_REPLICAS = 10_000


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What is simulated besides the trace and the costs.

    Attributes:
        replicas: that there are at first.
        router: "fastslow", "prefix" or "pow2".
        scaling: how their number follows the load; None = it stays.
        scaling_seconds: between two looks at the load.
        mtbf_hours: mean time between the deaths of a replica; infinity = they live.
        report_seconds: between two reports of a replica.
        machine_replicas: that share a machine and slow each other's steps, as the costs say.
        routing: settings of the real router.
        seed: of all chance.
    """

    replicas: int
    router: str = OURS
    scaling: ScalingSettings | None = None
    scaling_seconds: float = 5.0
    mtbf_hours: float = math.inf
    report_seconds: float = 1.0
    machine_replicas: int = 1
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise ValueError(f"replicas={self.replicas} must be between 1 and {MOST_REPLICAS}")
        if not 1 <= self.machine_replicas <= MOST_OTHERS:
            raise ValueError(
                f"machine_replicas={self.machine_replicas} must be between 1 and {MOST_OTHERS}"
            )
        if self.scaling is not None and self.scaling.most > MOST_REPLICAS:
            raise ValueError(f"scale_to={self.scaling.most} must be at most {MOST_REPLICAS}")
        check_router(self.router)
        for name in ("scaling_seconds", "mtbf_hours", "report_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
