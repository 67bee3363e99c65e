"""Several engines of one `fastslow serve`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastslow.engine.host.machine import cores
from fastslow.engine.params import shown

if TYPE_CHECKING:
    from fastslow.serve.api.config import ServerConfig
    from fastslow.serve.api.engine import Engine, StartedEngine
    from fastslow.tools.cli.serve_options import Place

CLIENT = "ray://"  # how addresses of Ray Client begin


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
        raise ValueError(f"--address={shown(address)} must be auto, HOST:PORT or ray://HOST:PORT")
    if config.replica_resources is not None and address is None:
        raise ValueError("--replica-resources is for a Ray cluster: give --address, too")
    if address is not None and find_spec("ray") is None:
        raise ValueError("--address needs ray: pip install 'fastslow[ray]'")
    if config.replicas is not None and in_process:
        raise ValueError("--in-process is for one engine: leave out --replicas")


def is_by_client(address: str | None) -> bool:
    """Whether the cluster is one that only Ray Client reaches: the server has to run there, too."""
    return (address or "").startswith(CLIENT)


def open_several(config: ServerConfig, address: str | None) -> tuple[Engine, StartedEngine]:
    """Engines in processes of this server, or on a Ray cluster, as one; and what starts them."""
    from fastslow.serve.engines.continued_engine import ContinuedEngine
    from fastslow.serve.engines.process_replicas import ProcessReplicas
    from fastslow.serve.engines.replica_settings import ReplicaSettings
    from fastslow.serve.engines.routed_engine import RoutedEngine

    if address is None:
        each = ReplicaSettings.of(config, cores())
        several = RoutedEngine(ProcessReplicas(config.engine, each))
    else:
        from fastslow.serve.ray.cluster import Cluster
        from fastslow.serve.ray.deployments import OwnDeployment
        from fastslow.serve.ray.replicas import RayReplicas

        each = ReplicaSettings.of(config)
        environment = config.log_environment
        own = OwnDeployment(Cluster(address), config.engine, each, environment)
        several = RoutedEngine(RayReplicas(own))
    return ContinuedEngine(several), several


def deploy_by_client(config: ServerConfig, place: Place) -> None:
    """Deploy the whole server on a cluster that only Ray Client reaches, and say where it is. ValueError: an
    option is for a server in this process. RuntimeError: Ray or the engine failed."""
    if place.api_key:
        raise ValueError("--api-key is for a server in this process: with ray:// give --api-keys")
    if place.unix_socket is not None:
        raise ValueError("--unix-socket is for a server in this process: leave it out with ray://")
    if not place.port:
        raise ValueError("--port 0 is for a server in this process: with ray:// give a number")
    from fastslow.serve.ray.app import Arguments, deploy
    from fastslow.tools.cli.screen import errors

    errors().print("The engines load on the cluster.", style="dim")
    given = {name: getattr(config, name) for name in config.model_fields_set}
    address = place.address or ""
    deploy(address, Arguments(**given), place.host, place.port)
    local = place.host in ("127.0.0.1", "localhost", "::1")
    where = "on each of its nodes" if local else "on its nodes"
    host = place.host if local else urlsplit(address).hostname
    errors().print(
        f"{config.served_name} is served at http://{host}:{place.port}, {where}.\n"
        "It stays there; `serve shutdown` on the first node of the cluster ends it.",
        soft_wrap=True,
    )


def _is_address(text: str) -> bool:
    """Whether it can be that of a cluster."""
    found = re.fullmatch(rf"(?:{CLIENT})?[^/]+:([1-9][0-9]{{0,4}})", text)
    return text == "auto" or (found is not None and int(found[1]) < 65_536)
