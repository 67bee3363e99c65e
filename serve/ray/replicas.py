"""How many replicas of an engine there are, and what each of them takes of its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.params import nearest, shown

MOST, MOST_CPUS = 10_000, 1024
MOST_RUNNING = 64  # answers that an engine runs where its options do not say
ROUTERS = {
    "fastslow": "fastslow.serve.ray.router:FastSlowRouter",
    # Ray's own, from where it lies: its public name, ray.serve.llm.request_router, needs vLLM or SGLang
    "prefix": (
        "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router:"
        "PrefixCacheAffinityRouter"
    ),
    "pow2": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",  # Ray's default
}
APPLICATION, DEPLOYMENT = "fastslow", "engine"  # their names in Ray Serve


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Plain JSON values.

    Attributes:
        least, most: replicas; as many as the load asks for where they differ.
        cpus: processor cores of a replica, all its ranks together; its engine runs as many threads.
        resources: what else a replica takes, all its ranks together, by Ray's names: GPU, NPU or own ones.
        drain: seconds that running answers have when a replica is to end.
        router: what chooses a replica for a request, a name of ROUTERS.
        health_seconds: between two questions whether a replica lives.
        hung_seconds: that it has to answer one; after three without an answer it is replaced.
    """

    least: int = 1
    most: int = 1
    cpus: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    drain: float = 30.0
    router: str = "fastslow"
    health_seconds: float = 1.0
    hung_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("least", "most"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"replicas={getattr(self, name)} must be from 1 to {MOST}")
        if self.least > self.most:
            raise ValueError(
                f"replicas={self.least}:{self.most} must name the smaller number first"
            )
        if not 1 <= self.cpus <= MOST_CPUS:
            raise ValueError(f"replica_cpus={self.cpus} must be from 1 to {MOST_CPUS}")
        if self.router not in ROUTERS:
            known = nearest(self.router, ROUTERS)
            raise ValueError(f"router={shown(self.router)} is unknown{known}")

    @property
    def name(self) -> str:
        """How many, as `counts` reads it."""
        return str(self.least) if self.least == self.most else f"{self.least}:{self.most}"


def lacking(replicas: ReplicaSettings, there: Mapping[str, float]) -> str | None:
    """What a cluster has too little of for the least number of replicas, in a sentence.

    Args:
        there: all resources of the cluster, by Ray's names.
    """
    for name, each in {"CPU": float(replicas.cpus), **replicas.resources}.items():
        if each * replicas.least > there.get(name, 0.0):
            needed = f"{replicas.least} replicas need {name}={each * replicas.least:g} together"
            return f"{needed}, and the cluster has {there.get(name, 0.0):g}"
    return None


def counts(text: str) -> tuple[int, int]:
    """Least and most of "2" or "1:4".

    Raises:
        ValueError: it is neither.
    """
    least, colon, most = text.partition(":")
    numbers = [part.strip() for part in ((least, most) if colon else (least, least))]
    if not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in numbers):
        raise ValueError(
            f"replicas={shown(text)} must be a number such as 2, or a range such as 1:4"
        )
    return int(numbers[0]), int(numbers[1])


def resources_of(text: str) -> dict[str, float]:
    """What "NPU=1,fast_disk=0.5" names.

    Raises:
        ValueError: it is no such text.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            amount = float(value)
        except ValueError:
            amount = -1.0
        if not name or not 0 < amount < 1e6:
            raise ValueError(
                f"replica_resources={shown(text)} must be names with amounts above 0, such as NPU=1"
            )
        if name == "CPU":
            raise ValueError("replica_resources names CPU: give replica_cpus for that")
        found[name] = amount
    return found


def ranks_of(options: Mapping[str, Any]) -> int:
    """Processes of an engine, by the keyword arguments of its `LLM`.

    Raises:
        ValueError: its `parallel` is none.
    """
    asked = options.get("parallel")
    if asked is None:
        return 1
    from fastslow.engine.parallel.sharding import Parallel  # with torch

    return Parallel.parse(asked).ranks


def running_of(options: Mapping[str, Any]) -> int:
    """Most answers that an engine runs, by the keyword arguments of its `LLM`.

    Raises:
        ValueError: its `max_running` is none.
    """
    given = options.get("max_running", MOST_RUNNING)
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError(f"max_running={shown(given)} must be a whole number of at least 1")
    return given


def usual_resources(options: Mapping[str, Any], ranks: int) -> dict[str, float]:
    """What a replica takes whose operator does not say: a device for each rank, where one is named."""
    kind = str(options.get("device", "auto")).partition(":")[0]
    name = {"cuda": "GPU", "npu": "NPU"}.get(kind)
    return {} if name is None else {name: float(ranks)}
