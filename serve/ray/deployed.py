"""The engines of a cluster, as a server in front of them finds them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from loguru import logger

from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.ray import QUIET
from fastslow.serve.ray.cluster import CLOSING, Cluster, ray_logs
from fastslow.serve.ray.load_failure import told_error
from fastslow.serve.ray.replicas import (
    APPLICATION,
    DEPLOYMENT,
    ReplicaSettings,
    lacking,
)


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many there are now.

    Attributes:
        running: that take requests.
        starting: that load.
        failed: why no replica will ever run, else None.
    """

    running: int = 0
    starting: int = 0
    failed: Exception | None = None


class Deployed(Protocol):
    """A deployment of engines."""

    async def open(self) -> Any:
        """Its handle."""

    async def look(self) -> Replicas:
        """Its replicas now."""

    async def close(self) -> None:
        """Leave it."""


class OwnDeployment:
    """Engines that this process deploys, and removes at its end.

    Args:
        cluster: where.
        settings: of each engine.
        replicas: how many, and what each takes.
        environment: variables that their processes get.
        name: of the application, in a cluster that others use too.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: EngineSettings,
        replicas: ReplicaSettings,
        environment: dict[str, str] | None = None,
        name: str = APPLICATION,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._replicas = replicas
        self._environment = environment or {}
        self._name = name
        self._deployed = self._own_serve = False

    async def open(self) -> Any:
        await self._cluster.open(self._environment)
        return await self._cluster.call(self._deploy)

    async def look(self) -> Replicas:
        return await self._cluster.call(replicas_now, self._name)

    async def close(self) -> None:
        try:
            if self._deployed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._cluster.call(self._remove), CLOSING)
        finally:
            await self._cluster.close()

    def _deploy(self) -> Any:
        import ray
        from ray import serve
        from ray.serve.schema import LoggingConfig

        from fastslow.serve.ray.deploy import engines

        lacks = lacking(self._replicas, ray.cluster_resources())
        if lacks is not None and self._cluster.local:
            raise ValueError(lacks)
        if lacks is not None:
            logger.warning("{}: some wait until nodes come that have it", lacks)
        # all processes of a local cluster have them already
        environment = {} if self._cluster.local else QUIET | self._environment
        application = engines(self._settings, self._replicas, environment)
        self._own_serve = not serve_runs()
        serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
        if self._name in serve.status().applications:  # of a server that died, or of one that runs
            logger.warning("the cluster's application {} is replaced by this one", self._name)
        self._deployed = True
        # without waiting: the first replica that runs is enough, and a failure is told by `look`
        target = serve.RunTarget(target=application, name=self._name, route_prefix=None)
        return serve.run_many([target], wait_for_applications_running=False)[0]

    def _remove(self) -> None:
        from ray import serve

        ray_logs(logging.ERROR)  # what ends is told by us
        try:
            serve.delete(self._name)
            if self._own_serve and not self._cluster.local and not serve.status().applications:
                serve.shutdown()  # as it runs without HTTP proxies, others would have no use for it
        except Exception as error:  # noqa: BLE001 - the cluster may be gone
            logger.warning("the replicas could not be ended one by one: {}", error)


def serve_runs() -> bool:
    """Whether the cluster has Ray Serve already."""
    from ray.util import list_named_actors

    names = (actor["name"] for actor in list_named_actors(all_namespaces=True))
    return "SERVE_CONTROLLER_ACTOR" in names


def replicas_now(name: str) -> Replicas:
    """The replicas of an application's engines."""
    from ray import serve

    application = serve.status().applications.get(name)
    if application is None:
        return Replicas()
    deployment = application.deployments.get(DEPLOYMENT)
    states = {} if deployment is None else deployment.replica_states
    count = {str(getattr(state, "value", state)): number for state, number in states.items()}
    status = str(getattr(application.status, "value", application.status))
    running = count.get("RUNNING", 0)
    failed = None
    if status == "DEPLOY_FAILED" and not running:
        message = deployment.message if deployment is not None else application.message
        failed = told_error(message or application.message)
    return Replicas(running, count.get("STARTING", 0) + count.get("UPDATING", 0), failed)
