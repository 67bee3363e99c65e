"""The engines of a cluster, as a server in front of them finds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from loguru import logger
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

from fastslow.serve.engines.replica_settings import MOST_RUNNING, ReplicaSettings, ranks_of
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.ray import QUIET
from fastslow.serve.ray.cluster import CLOSING, in_thread, join, leave, ray_logs
from fastslow.serve.ray.messages import failure_in
from fastslow.serve.ray.replica import EngineReplica

APPLICATION, DEPLOYMENT = "fastslow", "engine"  # their names in Ray Serve
SPARE = 1000  # calls at a replica beyond the answers that its engine takes: it says itself that it is busy
REPORTS = 1.0  # seconds between two reports of a replica to routers
ATTEMPTS = 3  # to start each replica, when none has ever started
# by their names: Ray's processes import them
ROUTER = "fastslow.serve.ray.router:NamedReplicaRouter"
SCALING = "fastslow.serve.ray.scaling:QueueScaling"


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """Replicas that there are now, by state."""

    running: int = 0  # that take requests
    starting: int = 0  # that load
    failed: Exception | None = None  # why no replica will ever run


class FoundDeployment:
    """Engines of the application that this process belongs to: Ray Serve starts and ends them."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self.name = name

    async def open(self) -> Any:
        """The handle."""
        return self._handle

    async def look(self) -> DeploymentState:
        """The replicas now."""
        return await in_thread(state_now, self.name)

    async def close(self) -> None:
        """Leave it."""


class OwnDeployment(FoundDeployment):
    """Engines that this process deploys on the cluster at an address, and removes at its end. environment:
    variables of their processes."""

    def __init__(
        self,
        address: str,
        settings: EngineSettings,
        replicas: ReplicaSettings,
        environment: Mapping[str, str] = {},
    ) -> None:
        super().__init__(None, APPLICATION)
        self._address = address
        self._settings = settings
        self._replicas = replicas
        self._environment = {**QUIET, **environment}
        self._deployed = self._own_serve = False

    async def open(self) -> Any:
        await join(self._address)
        return await in_thread(self._deploy)

    async def close(self) -> None:
        try:
            if self._deployed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(in_thread(self._remove), CLOSING)
        finally:
            await leave()

    def _deploy(self) -> Any:
        import ray

        lacks = lacking(self._replicas, ray.cluster_resources())
        if lacks is not None:
            logger.warning("{}: some wait until nodes come that have it", lacks)
        application = engines(self._settings, self._replicas, self._environment)
        self._own_serve = not _serve_runs()
        serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
        if self.name in serve.status().applications:  # of a server that died, or of one that runs
            logger.warning("the cluster's application {} is replaced by this one", self.name)
        self._deployed = True
        # without waiting: the first replica that runs is enough, and `look` sees a failure
        target = serve.RunTarget(target=application, name=self.name, route_prefix=None)
        return serve.run_many([target], wait_for_applications_running=False)[0]

    def _remove(self) -> None:
        ray_logs(logging.ERROR)  # our own log says what ends
        try:
            serve.delete(self.name)
            if self._own_serve and not serve.status().applications:
                serve.shutdown()  # as it runs without HTTP proxies, others would have no use for it
        except Exception as error:  # noqa: BLE001 - the cluster may be gone
            logger.warning("the replicas could not be ended: {}", error)


def engines(
    settings: EngineSettings, replicas: ReplicaSettings, environment: Mapping[str, str]
) -> Application:
    """The deployment of an engine. environment: variables of its processes."""
    ranks = ranks_of(settings.options)
    running = settings.options.get("max_running", MOST_RUNNING)
    deployment = serve.deployment(EngineReplica).options(
        name=DEPLOYMENT,
        **_number(replicas),
        **_place(replicas, ranks, environment),
        max_ongoing_requests=running + settings.max_waiting + SPARE,
        health_check_period_s=replicas.health_seconds,
        health_check_timeout_s=replicas.hung_seconds,
        graceful_shutdown_timeout_s=replicas.drain + 5.0,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=ATTEMPTS,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,
            request_routing_stats_period_s=REPORTS,
            request_routing_stats_timeout_s=10 * REPORTS,
        ),
    )
    return deployment.bind(asdict(replace(settings, threads=max(1, replicas.cpus // ranks))))


def _number(replicas: ReplicaSettings) -> dict[str, Any]:
    if replicas.least == replicas.most:
        return {"num_replicas": replicas.least}
    return {
        "autoscaling_config": {
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "metrics_interval_s": REPORTS,
            "look_back_period_s": 2 * REPORTS,
            # the policy waits by itself, and asks only once; Ray would want to hear it for half a minute
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "policy": {"policy_function": SCALING},
        }
    }


def _place(replicas: ReplicaSettings, ranks: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return Ray's options for a replica: its ranks are its own processes, on one node, and see only its devices."""
    own = {name: amount for name, amount in replicas.resources.items() if name != "GPU"}
    gpus = replicas.resources.get("GPU", 0)
    actor: dict[str, Any] = {"num_cpus": replicas.cpus, "num_gpus": gpus, "resources": own}
    if environment:
        actor["runtime_env"] = {"env_vars": dict(environment)}
    place: dict[str, Any] = {"ray_actor_options": actor}
    if ranks > 1:
        bundle = {"CPU": replicas.cpus, **replicas.resources}
        place |= {"placement_group_bundles": [bundle], "placement_group_strategy": "STRICT_PACK"}
    return place


def lacking(replicas: ReplicaSettings, there: Mapping[str, float]) -> str | None:
    """Say what a cluster with these resources has too little of for the least number of replicas; None: nothing."""
    for name, each in {"CPU": float(replicas.cpus), **replicas.resources}.items():
        if each * replicas.least > there.get(name, 0.0):
            asked = f"replicas={replicas.least} with {name}={each:g} for each"
            return f"{asked} is more than the cluster has: {name}={there.get(name, 0.0):g}"
    return None


def state_now(name: str) -> DeploymentState:
    """The replicas of an application's engines."""
    application = serve.status().applications.get(name)
    if application is None:
        return DeploymentState()
    deployment = application.deployments.get(DEPLOYMENT)
    states = {} if deployment is None else deployment.replica_states
    count = {str(getattr(state, "value", state)): number for state, number in states.items()}
    status = str(getattr(application.status, "value", application.status))
    running = count.get("RUNNING", 0)
    failed = None
    if status == "DEPLOY_FAILED" and not running:
        message = deployment.message if deployment is not None else application.message
        failed = failure_in(message or application.message)
    starting = count.get("STARTING", 0) + count.get("UPDATING", 0)
    return DeploymentState(running, starting, failed)


def _serve_runs() -> bool:
    """Tell whether the cluster has Ray Serve already."""
    from ray.util import list_named_actors

    names = (actor["name"] for actor in list_named_actors(all_namespaces=True))
    return "SERVE_CONTROLLER_ACTOR" in names
