"""How many replicas there are, what each takes, and what Ray Serve is asked for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from fastslow.async_llm import MAX_WAITING
from fastslow.llm import LLM
from fastslow.serve.api.config import ServerConfig
from fastslow.serve.engines.replica_settings import ReplicaSettings, counts, resources_of
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.ray.deployments import SPARE, engines, lacking


def deployed(settings: ReplicaSettings, **options: Any) -> Any:
    model = EngineSettings("a-model", "a-model", options)
    return engines(model, settings, {})._bound_deployment


def test_replicas_follow_the_load_by_queues_and_without_delays_of_ray() -> None:
    scaling = deployed(ReplicaSettings(1, 4))._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.policy.policy_function == "fastslow.serve.ray.scaling:QueueScaling"
    # Ray holds its own delays against policies too, and this one asks only once
    assert scaling.upscale_delay_s == scaling.downscale_delay_s == 0
    assert deployed(ReplicaSettings(2, 2)).num_replicas == 2


def test_ranks_are_on_one_node_and_share_its_cores() -> None:
    made = deployed(ReplicaSettings(cpus=4), parallel="ep=2")
    assert made._replica_config.placement_group_bundles == [{"CPU": 4}]
    assert made._replica_config.placement_group_strategy == "STRICT_PACK"
    assert made.init_args[0]["threads"] == 2


@pytest.mark.parametrize("given", ["x", None, True, 0, 2.5])
def test_a_number_of_running_answers_that_does_not_fit(given: object) -> None:
    with pytest.raises(ValueError, match=f"max_running={given!r} must be a whole number"):
        deployed(ReplicaSettings(), max_running=given)


def test_a_replica_takes_what_its_engine_takes_and_more() -> None:
    """So the engine itself says that it is busy, and Ray holds nothing back."""
    usual = deployed(ReplicaSettings())._deployment_config.max_ongoing_requests
    more = deployed(ReplicaSettings(), max_running=164)._deployment_config.max_ongoing_requests
    running = inspect.signature(LLM).parameters["max_running"].default
    assert usual == running + MAX_WAITING + SPARE and more == usual + 164 - running


def test_what_the_operator_gives() -> None:
    def of(cores: int | None = None, **fields: Any) -> ReplicaSettings:
        return ReplicaSettings.of(ServerConfig(**fields), cores)

    assert of(8, replicas="2").cpus == 4 and of(2, replicas="1:4").cpus == 1
    assert of(replicas="2", options={"parallel": "ep=2"}).cpus == 2
    assert of(8, replica_cpus=3).cpus == 3 and of(drain_seconds=5).drain == 5.0
    two = of(options={"parallel": "ep=2", "device": "npu:0"})
    assert two.resources == {"NPU": 2.0}
    assert of(replica_resources="fast=1", options={"device": "cuda"}).resources == {"fast": 1.0}
    for text, sentence in (
        ("4:1", "must name the smaller number first"),
        ("0", "must be from 1 to 10000"),
        ("x", "must be a number such as 2, or a range such as 1:4"),
    ):
        with pytest.raises(ValueError, match=sentence):
            of(replicas=text)
    assert counts("3") == (3, 3)


def test_resources_of_a_replica() -> None:
    assert resources_of("NPU=1, fast_disk=0.5") == {"NPU": 1.0, "fast_disk": 0.5}
    for text in ("GPU", "GPU=0", "GPU=nan", "=1", "GPU=1e9", ""):
        with pytest.raises(ValueError, match="must be names with amounts above 0, such as NPU=1"):
            resources_of(text)
    with pytest.raises(ValueError, match="names CPU: give replica_cpus for that"):
        resources_of("CPU=2")


def test_what_a_cluster_has_too_little_of_is_named() -> None:
    there = {"CPU": 4.0, "GPU": 1.0}
    assert lacking(ReplicaSettings(2, 8, cpus=2, resources={"GPU": 0.5}), there) is None
    assert lacking(ReplicaSettings(2, 2, cpus=3), there) == (
        "replicas=2 with CPU=3 for each is more than the cluster has: CPU=4"
    )
    assert lacking(ReplicaSettings(resources={"NPU": 1.5}), there) == (
        "replicas=1 with NPU=1.5 for each is more than the cluster has: NPU=0"
    )
