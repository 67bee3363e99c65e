"""The arguments of an application for `serve run`, as they stand in its config file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from fastslow.engine.params import Params
from fastslow.serve.api.settings import Count, Seconds, ServerSettings
from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.engines.warm_prefix import WarmPrefix
from fastslow.serve.ray.replicas import (
    ReplicaSettings,
    counts,
    ranks_of,
    resources_of,
    usual_resources,
)


class Arguments(Params):
    """Which model, how many engines, and the server in front of them. Files lie on each node."""

    model: str = Field(description="checkpoint folder, GGUF file or built-in name")
    name: str = Field(default="", description='what clients call it; "" = the model\'s own name')
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of `LLM`, such as kv_memory"
    )
    max_waiting: int = Field(
        default=256, ge=0, description="most answers that wait, of each engine"
    )
    warm: list[dict[str, Any]] = Field(
        default_factory=list,
        description="what prompts begin with, read before the first request: name, prompt, mode of each",
    )
    replicas: str = Field(default="1", description="engines, or from 1 to 4 by load with 1:4")
    replica_cpus: Count | None = Field(default=None, description="cores of each; None = one a rank")
    replica_resources: str | None = Field(
        default=None, description="what else each takes of a node, such as GPU=1"
    )
    router: str = Field(
        default="fastslow", description="what chooses an engine: fastslow, or Ray's prefix or pow2"
    )
    drain_seconds: Seconds = Field(
        default=30, description="what running answers have when an engine or a server is to end"
    )
    servers: Count = Field(default=1, description="HTTP servers in front of the engines")
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of `ServerSettings`")
    api_keys: str | None = Field(
        default=None,
        description="keys file of `fastslow keys add` on each node; None = the usual one, if it is there",
    )
    max_requests: Count | None = Field(
        default=None, description="most requests at the same time, of each server"
    )
    body_seconds: Seconds = Field(default=60, description="what a request's body may take to come")
    allow_origins: tuple[str, ...] = Field(
        default=(), description="pages that browsers may let use it"
    )
    allow_hosts: tuple[str, ...] = Field(default=(), description="names it may be called by")
    log_texts: bool = Field(default=False, description="log prompts and answers, too")
    metrics_by_key: bool = Field(default=False, description="metrics by API key, too")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the processes, such as FASTSLOW_LOG_FORMAT"
    )

    @field_validator("replicas", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> object:
        """YAML has 2 as a number."""
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @field_validator("warm")
    @classmethod
    def _whole(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for place, prefix in enumerate(given):
            if set(prefix) != {"name", "prompt", "mode"}:
                raise ValueError(f"warm[{place}] must have name, prompt and mode, and no more")
        return given

    @field_validator("settings")
    @classmethod
    def _fit(cls, given: dict[str, Any]) -> dict[str, Any]:
        ServerSettings(**given)
        return given

    @property
    def engine(self) -> EngineSettings:
        """Each engine."""
        name = self.name or Path(self.model).name or self.model
        options = {"remember": "by_key", **self.options}
        warm = [WarmPrefix(name=w["name"], prompt=w["prompt"], mode=w["mode"]) for w in self.warm]
        return EngineSettings(self.model, name, options, self.max_waiting, warm)

    @property
    def each(self) -> ReplicaSettings:
        """How many, and what each takes.

        Raises:
            ValueError: a value does not fit.
        """
        least, most = counts(self.replicas)
        ranks = ranks_of(self.options)
        if self.replica_resources is None:
            resources = usual_resources(self.options, ranks)
        else:
            resources = resources_of(self.replica_resources)
        return ReplicaSettings(
            least,
            most,
            self.replica_cpus or ranks,
            resources,
            self.drain_seconds,
            self.router,
        )
