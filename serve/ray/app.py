"""The server inside of a cluster: `build` is the application for `serve run`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from loguru import logger
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from fastslow.serve.api.config import Count, ServerConfig
from fastslow.serve.api.keys import known_keys
from fastslow.serve.app import create_app
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.engines.replica_settings import ReplicaSettings
from fastslow.serve.engines.routed_engine import RoutedEngine
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.observe.logs import ServerLog
from fastslow.serve.observe.tracing import tracing
from fastslow.serve.ray import QUIET
from fastslow.serve.ray.deployments import FoundDeployment, engines
from fastslow.serve.ray.replicas import RayReplicas

SERVER = "server"  # the deployment's name
MOST_REQUESTS = 10_000  # of a server at a time; its own limits are below, and say what is wrong


class Arguments(ServerConfig):
    """The arguments of an application for `serve run`, as they stand in its config file: a `ServerConfig` on a
    cluster. Files lie on each node."""

    servers: Count = Field(default=1, description="HTTP servers in front of the engines")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the processes, such as OMP_NUM_THREADS"
    )


class Ingress:
    """A deployment class of Ray Serve: what `fastslow serve` has in front of its engines."""

    async def __init__(self, handle: Any, arguments: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._log = ServerLog.of_environment()
        given = Arguments(**arguments)
        name = serve.get_replica_context().app_name
        self._engine = RoutedEngine(RayReplicas(FoundDeployment(handle, name)))
        keys = known_keys(given.api_keys, ())
        self._settings = given.settings
        self._app = create_app(ContinuedEngine(self._engine), given, keys, None, tracing())
        self._starting = asyncio.create_task(self._start())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def __del__(self) -> None:
        if hasattr(self, "_starting"):  # else it could not be made
            self._starting.cancel()
            await self._engine.close()
        self._log.close()

    async def _start(self) -> None:
        """Until the engines are there, /ready says so."""
        try:
            await self._engine.start()
            self._settings.fit(self._engine.card)
        except Exception as error:  # noqa: BLE001 - the deployment's status has it, too
            logger.error("the server cannot be used as it is: {}", error)


def build(given: dict[str, Any]) -> Application:
    """Engines, and HTTP servers in front of them. given: the fields of `Arguments`. ValueError: one does not fit; one
    sentence."""
    arguments = Arguments(**given)
    environment = QUIET | arguments.log_environment | arguments.environment
    handle = engines(EngineSettings.of(arguments), ReplicaSettings.of(arguments), environment)
    deployment = serve.deployment(serve.ingress()(Ingress)).options(
        name=SERVER,
        num_replicas=arguments.servers,
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=arguments.drain_seconds + 5.0,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": environment}},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment.bind(handle, arguments.model_dump(mode="json"))
