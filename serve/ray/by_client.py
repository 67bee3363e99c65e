"""An application on a cluster that is reached through Ray Client."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from fastslow.serve.ray.app import build
from fastslow.serve.ray.arguments import Arguments
from fastslow.serve.ray.cluster import first_line, ray_logs, reach
from fastslow.serve.ray.load_failure import told_error
from fastslow.serve.ray.replicas import APPLICATION


def deploy(address: str, arguments: Arguments, host: str, port: int) -> None:
    """Deploy engines and the server in front of them, and wait until they run; they stay when this process ends.

    Ray Client passes no streams, so the server has to run on the cluster.

    Args:
        address: ray://HOST:PORT.
        arguments: of the application.
        host, port: where the HTTP proxies of Ray Serve listen, on each node; those of one that runs stay.

    Raises:
        ValueError: one sentence about what does not fit.
        RuntimeError: Ray or the engine failed.
    """
    ray_logs(logging.ERROR)
    reach(address)
    try:
        ray.init(address, namespace="serve", log_to_driver=False)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise RuntimeError(
            f"cannot join the Ray cluster {address!r}: {first_line(error)}"
        ) from None
    try:
        listen: dict[str, Any] = {"host": host, "port": port}
        serve.start(http_options=listen, logging_config=LoggingConfig(log_level="WARNING"))
        application = build(arguments.model_dump(mode="json"))
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise told_error(str(error)) from None
        if not serve.status().proxies:
            raise RuntimeError(
                "Ray Serve runs on this cluster without HTTP proxies, and nothing reaches the server: "
                "end it with `serve shutdown` on a node, and deploy again"
            )
    finally:
        ray.shutdown()
