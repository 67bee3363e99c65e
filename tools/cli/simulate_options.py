"""The options of `fastslow simulate` that describe a cluster and a made trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

from fastslow.tools.cli.options import option, shown_option

if TYPE_CHECKING:
    from fastslow.tools.simulate.settings import ClusterSettings
    from fastslow.tools.simulate.synthetic import TraceRecipe

SCALING, MACHINES, ROUTER = "Autoscaling", "Machines", "Router"
CHANCE, LOAD, TEXTS = "Deaths and chance", "Load", "Texts"


@dataclass(frozen=True)
class ClusterOptions:
    """What is simulated besides the trace and the costs."""

    scale_to: Annotated[
        int | None,
        option("Most replicas: their number begins at --replicas and follows the load.", SCALING),
    ] = None
    scale_from: Annotated[
        int, shown_option("Fewest replicas, with --scale-to.", SCALING, min=1)
    ] = 1
    quick_queue_seconds: Annotated[
        float, shown_option("Seconds that quick requests may wait.", SCALING, min=0.001)
    ] = 1.0
    deep_queue_seconds: Annotated[
        float, shown_option("Seconds that deep requests may wait.", SCALING, min=0.001)
    ] = 20.0
    machine_replicas: Annotated[
        int,
        shown_option(
            "Replicas on one machine; they slow each other as `measure --beside` found.",
            MACHINES,
            min=1,
        ),
    ] = 1
    mtbf_hours: Annotated[
        float | None,
        option("Mean hours between deaths of a replica; its answers go on elsewhere.", CHANCE),
    ] = None
    report_seconds: Annotated[
        float, shown_option("Seconds between two reports of a replica.", ROUTER, min=0.01)
    ] = 1.0
    routing: Annotated[
        str | None,
        option("Settings of the real router, such as urgent_each=64,holders=8.", ROUTER),
    ] = None
    seed: Annotated[int, shown_option("Of all random choices.", CHANCE, min=0)] = 0

    def settings(self) -> ClusterSettings:
        """As the simulator has them; the number of replicas and the router are set later.

        Raises:
            ValueError: a field is out of range, or unknown.
        """
        from fastslow.serve.engines.routing.scaling import ScalingSettings
        from fastslow.tools.simulate.routers import read_routing
        from fastslow.tools.simulate.settings import ClusterSettings

        scaling = None
        if self.scale_to is None and self.scale_from > 1:
            raise ValueError(f"scale_from={self.scale_from} is for scale_to: give that, too")
        if self.scale_to is not None:
            if self.scale_from > self.scale_to:
                raise ValueError(
                    f"scale_from={self.scale_from} must be at most scale_to={self.scale_to}"
                )
            scaling = ScalingSettings(
                least=self.scale_from,
                most=self.scale_to,
                quick_queue_seconds=self.quick_queue_seconds,
                deep_queue_seconds=self.deep_queue_seconds,
            )
        return ClusterSettings(
            replicas=1,
            scaling=scaling,
            mtbf_hours=math.inf if self.mtbf_hours is None else self.mtbf_hours,
            report_seconds=self.report_seconds,
            machine_replicas=self.machine_replicas,
            routing=read_routing(self.routing or ""),
            seed=self.seed,
        )


@dataclass(frozen=True)
class RecipeOptions:
    """What a made trace is like."""

    requests: Annotated[int, shown_option("How many.", LOAD)] = 2_000
    rate: Annotated[float, shown_option("Requests a second, on average.", LOAD)] = 4.0
    burst: Annotated[
        float, shown_option("Share of requests that come in bursts of four times the rate.", LOAD)
    ] = 0.0
    deep: Annotated[float, shown_option("Share of requests that think.", LOAD)] = 0.2
    latency_ms: Annotated[
        float | None, option("Latency target of quick requests; default: none.", LOAD)
    ] = None
    bots: Annotated[int, shown_option("System prompts, each shared by its chats.", TEXTS)] = 20
    system_tokens: Annotated[int, shown_option("Length of a system prompt.", TEXTS)] = 1_000
    turns: Annotated[float, shown_option("Mean questions of a chat.", TEXTS)] = 4.0
    think_seconds: Annotated[
        float, shown_option("Mean seconds between two questions of a chat.", TEXTS)
    ] = 30.0
    question_tokens: Annotated[int, shown_option("Median of a chat's questions.", TEXTS)] = 60
    answer_tokens: Annotated[int, shown_option("Median of a chat's answers.", TEXTS)] = 150
    deep_tokens: Annotated[int, shown_option("Median of deep answers, with thoughts.", TEXTS)] = (
        2_000
    )
    seed: Annotated[int, shown_option("The same one gives the same trace.", LOAD)] = 0

    def recipe(self) -> TraceRecipe:
        """ValueError: a field is out of range."""
        from fastslow.tools.simulate.synthetic import TraceRecipe

        return TraceRecipe(**{field.name: getattr(self, field.name) for field in fields(self)})
