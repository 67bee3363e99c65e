"""The options of `serve` about several engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastslow.engine.host.machine import cores
from fastslow.tools.cli.options import option

if TYPE_CHECKING:
    from fastslow.serve.engines.replica_settings import ReplicaSettings

SEVERAL = "More than one engine"
CLIENT = "ray://"  # how addresses of Ray Client begin


@dataclass(frozen=True)
class ReplicaOptions:
    """How many engines run behind one server, and where.

    Raises:
        ValueError: options contradict each other.
    """

    replicas: Annotated[
        str | None,
        option(
            "Number of engines, or from 1 to 4 by load with 1:4; default: one.",
            SEVERAL,
        ),
    ] = None
    address: Annotated[
        str | None,
        option(
            "Ray cluster to run them on: auto, HOST:PORT or ray://HOST:PORT; default: this machine, "
            "without Ray.",
            SEVERAL,
        ),
    ] = None
    replica_cpus: Annotated[
        int | None,
        option(
            "Processor cores of each engine; default: this machine's, shared; with --address 1.",
            SEVERAL,
        ),
    ] = None
    replica_resources: Annotated[
        str | None,
        option(
            "What else each engine takes of a node of the cluster, by Ray's names: GPU=1 or "
            "NPU=4,fast_disk=1; default: a device for each rank, where --device names one.",
            SEVERAL,
        ),
    ] = None

    def __post_init__(self) -> None:
        for name in ("replicas", "address", "replica_cpus", "replica_resources"):
            given, option_name = getattr(self, name), f"--{name.replace('_', '-')}"
            if given == "":
                raise ValueError(f"{option_name} is empty: give a value, or leave it out")
            if self.replicas is None and given is not None:
                raise ValueError(f"{option_name} is for --replicas: give that, too")
        if self.replica_resources is not None and self.address is None:
            raise ValueError("--replica-resources is for a Ray cluster: give --address, too")
        if self.address is not None and not _is_address(self.address):
            from fastslow.engine.params import shown

            raise ValueError(
                f"--address={shown(self.address)} must be auto, HOST:PORT or ray://HOST:PORT"
            )

    @property
    def by_client(self) -> bool:
        """Whether the cluster is one that only Ray Client reaches: the server has to run there, too."""
        return (self.address or "").startswith(CLIENT)

    def settings(self, engine: dict[str, Any], drain: float) -> ReplicaSettings:
        """How many engines, and what each takes.

        Args:
            engine: keyword arguments of its `LLM`.
            drain: seconds that running answers have when one is to end.

        Raises:
            ValueError: a value does not fit.
        """
        from fastslow.serve.engines.replica_settings import ReplicaSettings

        return ReplicaSettings.of(
            self.replicas or "1",
            engine,
            self.replica_cpus,
            self.replica_resources,
            drain,
            cores() if self.address is None else None,
        )


def _is_address(text: str) -> bool:
    """Whether it can be that of a cluster."""
    if text == "auto":
        return True
    host, _, port = text.removeprefix(CLIENT).rpartition(":")
    fits = port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536
    return fits and bool(host) and "/" not in host
