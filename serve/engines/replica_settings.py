"""Settings of an engine's replicas: how many there are, and what each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerConfig
from fastslow.serve.engines.settings import EngineSettings, device_kind

MOST = 10_000
MOST_RUNNING = 64  # answers that an engine runs where its options do not say


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Plain JSON values. Cores and resources are those of a replica, all its ranks together."""

    least: int = 1  # replicas; as many as the load asks for where the two differ
    most: int = 1
    cpus: int = 1  # processor cores; its engine runs as many threads
    # what else it takes on a Ray cluster: GPU, NPU or own names
    resources: Mapping[str, float] = field(default_factory=dict)
    drain: float = 30.0  # seconds that running answers have when a replica is to end
    health_seconds: float = 1.0  # between two checks whether a replica lives
    # that it has to answer a check; then it is replaced. On one machine after three such checks
    hung_seconds: float = 10.0

    @classmethod
    def of(cls, config: ServerConfig, cores: int | None = None) -> ReplicaSettings:
        """From what the operator gives. cores: that the replicas share, where they have a machine to themselves.
        ValueError: a value does not fit; one sentence."""
        options = EngineSettings.of(config).options
        least, most = counts(config.replicas or "1")
        ranks = ranks_of(options)
        cpus = config.replica_cpus
        if cpus is None:
            cpus = ranks if cores is None else max(1, cores // most)
        device = {"cuda": "GPU", "npu": "NPU"}.get(device_kind(options))
        resources = {} if device is None else {device: float(ranks)}
        if config.replica_resources is not None:
            resources = resources_of(config.replica_resources)
        return cls(least, most, cpus, resources, config.drain_seconds)


def counts(text: str) -> tuple[int, int]:
    """Least and most of "2" or "1:4"."""
    least, colon, most = (part.strip() for part in text.partition(":"))
    numbers = least, most if colon else least
    if not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in numbers):
        raise ValueError(
            f"replicas={shown(text)} must be a number such as 2, or a range such as 1:4"
        )
    few, many = map(int, numbers)
    if not 1 <= few <= MOST or not 1 <= many <= MOST:
        raise ValueError(f"replicas={text} must be from 1 to {MOST}")
    if few > many:
        raise ValueError(f"replicas={text} must name the smaller number first")
    return few, many


def resources_of(text: str) -> dict[str, float]:
    """Parse resources, such as "NPU=1,fast_disk=0.5". ValueError: a part has no name or amount, or names CPU."""
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
    """Processes of an engine, by the keyword arguments of its `LLM`."""
    asked = options.get("parallel")
    if asked is None:
        return 1
    from fastslow.engine.parallel.sharding import Parallel  # with torch

    return Parallel.parse(asked).ranks
