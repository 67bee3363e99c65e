"""`build`: the application for `serve run`, with the import path fastslow.serve.ray.app:build."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from fastslow.serve.ray import QUIET
from fastslow.serve.ray.arguments import Arguments
from fastslow.serve.ray.deploy import engines
from fastslow.serve.ray.ingress import Ingress

SERVER = "server"  # the deployment's name
MOST_REQUESTS = (
    10_000  # of a server at the same time; its own limits are below, and say what is wrong
)


def build(given: dict[str, Any]) -> Application:
    """Engines, and HTTP servers in front of them.

    Args:
        given: the fields of `Arguments`.

    Raises:
        ValueError: one does not fit; one sentence.
    """
    arguments = Arguments(**given)
    environment = QUIET | arguments.log_environment | arguments.environment
    handle = engines(arguments.engine, arguments.each, environment)
    deployment = serve.deployment(serve.ingress()(Ingress)).options(
        name=SERVER,
        num_replicas=arguments.servers,
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=arguments.drain_seconds + 5.0,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": environment}},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(handle, arguments.model_dump(mode="json"))
