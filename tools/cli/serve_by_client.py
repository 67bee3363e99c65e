"""`fastslow serve --address ray://...`: the whole server runs on the cluster."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastslow.tools.cli.operation_options import OperationOptions
from fastslow.tools.cli.replica_options import ReplicaOptions
from fastslow.tools.cli.serve_options import ServeOptions


def deploy_by_client(
    options: ServeOptions, operations: OperationOptions, replicas: ReplicaOptions
) -> None:
    """Deploy it, and say where it is.

    Raises:
        ValueError: an option is for a server in this process.
        RuntimeError: Ray or the engine failed.
    """
    if operations.api_key:
        raise ValueError("--api-key is for a server in this process: with ray:// give --api-keys")
    if options.unix_socket is not None:
        raise ValueError("--unix-socket is for a server in this process: leave it out with ray://")
    if not options.port:
        raise ValueError("--port 0 is for a server in this process: with ray:// give a number")
    from fastslow.serve.ray.app import deploy
    from fastslow.serve.ray.arguments import Arguments
    from fastslow.tools.cli.screen import errors

    engine = options.engine_settings()
    arguments = Arguments(
        model=engine.model,
        name=engine.name,
        options=dict(engine.options),
        max_waiting=engine.max_waiting,
        warm=[dict(prefix) for prefix in engine.warm],
        replicas=replicas.replicas or "1",
        replica_cpus=replicas.replica_cpus,
        replica_resources=replicas.replica_resources,
        drain_seconds=max(0.001, options.drain_seconds),
        settings=options.server_settings().model_dump(mode="json", exclude_unset=True),
        api_keys=None if operations.api_keys is None else str(operations.api_keys),
        max_requests=operations.max_requests,
        body_seconds=operations.body_seconds,
        allow_origins=tuple(operations.allow_origin or ()),
        allow_hosts=tuple(operations.allow_host or ()),
        log_texts=operations.log_texts,
        metrics_by_key=operations.metrics_by_key,
        environment=operations.log_environment(),
    )
    address = replicas.address or ""
    errors().print("The engines load on the cluster.", style="dim")
    deploy(address, arguments, options.host, options.port)
    local = options.host in ("127.0.0.1", "localhost", "::1")
    where = "on each of its nodes" if local else "on its nodes"
    host = options.host if local else urlsplit(address).hostname
    errors().print(
        f"{engine.name} is served at http://{host}:{options.port}, {where}.\n"
        "It stays there; `serve shutdown` on the first node of the cluster ends it.",
        soft_wrap=True,
    )
