"""The arguments of an application for `serve run`, as they stand in its config file."""

from __future__ import annotations

from pydantic import Field

from fastslow.serve.api.config import Count, ServerConfig
from fastslow.serve.engines.replica_settings import ReplicaSettings


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
        return ReplicaSettings.of(self)
