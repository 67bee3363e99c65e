"""The arguments of an application for `serve run`, as they stand in its config file."""

from __future__ import annotations

from pydantic import Field

from fastslow.serve.api.config import Count, ServerConfig
from fastslow.serve.ray.replicas import (
    ReplicaSettings,
    counts,
    ranks_of,
    resources_of,
    usual_resources,
)


class Arguments(ServerConfig):
    """A `ServerConfig` on a cluster. Files lie on each node."""

    servers: Count = Field(default=1, description="HTTP servers in front of the engines")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the processes, such as OMP_NUM_THREADS"
    )

    @property
    def each(self) -> ReplicaSettings:
        """How many engines, and what each takes.

        Raises:
            ValueError: a value does not fit.
        """
        options = dict(self.engine.options)
        least, most = counts(self.replicas or "1")
        ranks = ranks_of(options)
        if self.replica_resources is None:
            resources = usual_resources(options, ranks)
        else:
            resources = resources_of(self.replica_resources)
        cpus = self.replica_cpus or ranks
        return ReplicaSettings(least, most, cpus, resources, self.drain_seconds)
