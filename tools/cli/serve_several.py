"""Several engines of one `fastslow serve`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastslow.engine.host.machine import cores
from fastslow.engine.params import shown

if TYPE_CHECKING:
    from fastslow.serve.api.config import ServerConfig
    from fastslow.serve.api.engine import Engine, StartedEngine
    from fastslow.serve.ray.replicas import ReplicaSettings
    from fastslow.tools.cli.serve_options import Place

CLIENT = "ray://"  # how addresses of Ray Client begin


def check_several(config: ServerConfig, address: str | None, in_process: bool) -> None:
    """Raises:
    ValueError: options contradict each other.
    """
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
    if config.replicas is not None:
        if find_spec("ray") is None:
            raise ValueError("--replicas needs ray: pip install 'fastslow[ray]'")
        if in_process:
            raise ValueError("--in-process is for one engine: leave out --replicas")


def is_by_client(address: str | None) -> bool:
    """Whether the cluster is one that only Ray Client reaches: the server has to run there, too."""
    return (address or "").startswith(CLIENT)


def open_several(config: ServerConfig, address: str | None) -> tuple[Engine, StartedEngine]:
    """Engines on a Ray cluster, as one; and what starts them."""
    from fastslow.serve.engines.continued_engine import ContinuedEngine
    from fastslow.serve.ray.cluster import Cluster
    from fastslow.serve.ray.deployed import OwnDeployment
    from fastslow.serve.ray.engine import RayEngine

    each = replica_settings(config, address)
    cluster = Cluster(address, max(cores(), each.most * each.cpus))
    several = RayEngine(OwnDeployment(cluster, config.engine, each, config.log_environment))
    return ContinuedEngine(several), several


def replica_settings(config: ServerConfig, address: str | None) -> ReplicaSettings:
    """How many engines, and what each takes.

    Raises:
        ValueError: a value does not fit.
    """
    from fastslow.serve.ray.replicas import (
        ReplicaSettings,
        counts,
        ranks_of,
        resources_of,
        usual_resources,
    )

    options = dict(config.engine.options)
    least, most = counts(config.replicas or "1")
    ranks = ranks_of(options)
    cpus = config.replica_cpus
    if cpus is None:
        cpus = ranks if address is not None else max(1, cores() // max(1, most))
    if config.replica_resources is None:
        resources = usual_resources(options, ranks)
    else:
        resources = resources_of(config.replica_resources)
    return ReplicaSettings(least, most, cpus, resources, config.drain_seconds)


def deploy_by_client(config: ServerConfig, place: Place) -> None:
    """Deploy the whole server on a cluster that only Ray Client reaches, and say where it is.

    Raises:
        ValueError: an option is for a server in this process.
        RuntimeError: Ray or the engine failed.
    """
    if place.api_key:
        raise ValueError("--api-key is for a server in this process: with ray:// give --api-keys")
    if place.unix_socket is not None:
        raise ValueError("--unix-socket is for a server in this process: leave it out with ray://")
    if not place.port:
        raise ValueError("--port 0 is for a server in this process: with ray:// give a number")
    from fastslow.serve.ray.arguments import Arguments
    from fastslow.serve.ray.by_client import deploy
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
    if text == "auto":
        return True
    host, _, port = text.removeprefix(CLIENT).rpartition(":")
    fits = port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536
    return fits and bool(host) and "/" not in host
