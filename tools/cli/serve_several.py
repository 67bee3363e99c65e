"""Several engines of one `fastslow serve`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastslow.engine.host.machine import cores
from fastslow.engine.params import shown

if TYPE_CHECKING:
    from fastslow.serve.api.config import ServerConfig
    from fastslow.serve.api.engine import Engine, StartedEngine


def check_several(config: ServerConfig, address: str | None, in_process: bool) -> None:
    """ValueError if options contradict each other."""
    given = {
        "replicas": config.replicas,
        "address": address,
        "replica-cpus": config.replica_cpus,
        "replica-resources": config.replica_resources,
    }
    for name, value in given.items():
        if value == "":
            raise ValueError(f"--{name} is empty: give a value, or leave it out")
        if config.replicas is None and value is not None:
            raise ValueError(f"--{name} is for --replicas: give that, too")
    if address is not None and not _is_address(address):
        raise ValueError(f"--address={shown(address)} must be auto or HOST:PORT")
    if config.replica_resources is not None and address is None:
        raise ValueError("--replica-resources is for a Ray cluster: give --address, too")
    if address is not None and find_spec("ray") is None:
        raise ValueError("--address needs ray: pip install 'fastslow[ray]'")
    if config.replicas is not None and in_process:
        raise ValueError("--in-process is for one engine: leave out --replicas")


def open_several(config: ServerConfig, address: str | None) -> tuple[Engine, StartedEngine]:
    """Engines in processes of this server, or on a Ray cluster, as one; and what starts them."""
    from fastslow.serve.engines.continued_engine import ContinuedEngine
    from fastslow.serve.engines.process_replicas import ProcessReplicas
    from fastslow.serve.engines.replica_settings import ReplicaSettings
    from fastslow.serve.engines.routed_engine import RoutedEngine
    from fastslow.serve.engines.settings import EngineSettings

    settings = EngineSettings.of(config)
    if address is None:
        each = ReplicaSettings.of(config, cores())
        several = RoutedEngine(ProcessReplicas(settings, each))
    else:
        from fastslow.serve.ray.deployments import OwnDeployment
        from fastslow.serve.ray.replicas import RayReplicas

        each = ReplicaSettings.of(config)
        environment = config.log_environment
        own = OwnDeployment(address, settings, each, environment)
        several = RoutedEngine(RayReplicas(own))
    return ContinuedEngine(several), several


def _is_address(text: str) -> bool:
    if text == "auto":
        return True
    host, _, port = text.rpartition(":")
    fits = port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536
    return fits and bool(host) and "/" not in host
