"""What Ray Serve is to run: a deployment of engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.ray.replica import EngineReplica
from fastslow.serve.ray.replicas import DEPLOYMENT, ReplicaSettings, ranks_of, running_of
from fastslow.serve.ray.routers import router_config

SPARE = 1000  # calls at a replica beyond the answers that its engine takes: it says itself that it is busy
REPORTS = 1.0  # seconds between two reports of a replica to routers
SCALING = "fastslow.serve.ray.scaling:QueueScaling"  # by its name: Ray's controller imports it
ATTEMPTS = 3  # to start each replica, when none has ever started


def engines(
    settings: EngineSettings, replicas: ReplicaSettings, environment: Mapping[str, str]
) -> Application:
    """The deployment of an engine.

    Args:
        settings: of each engine.
        replicas: how many, and what each takes.
        environment: variables that their processes get.

    Raises:
        ValueError: an option of the engine does not fit.
    """
    ranks = ranks_of(settings.options)
    running = running_of(settings.options)
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
        request_router_config=router_config(replicas.router, period=REPORTS),
    )
    return deployment.bind(asdict(settings), max(1, replicas.cpus // ranks))


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
    """What a replica's process takes. Ranks are processes of the replica, so all of them lie on one node; Ray
    shows devices only to the process that has asked for them, which is the replica for all its ranks."""
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
