"""The load of an engine as a report to routers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from fastslow.engine.params import CHANGED
from fastslow.serve.engines.routing.report import ReplicaReport

if TYPE_CHECKING:  # routers and fronts import no torch
    from fastslow.engine.core.load import EngineLoad


def may_take_long(mode: Mapping[str, Any]) -> bool:
    """Whether requests of a mode may think, by its fields. A mode that chooses another one may choose one
    that thinks. It is the same for a model that cannot think: who asks for its deep mode takes time for it."""
    return mode.get("thinking", "auto") != "off" or bool(mode.get("auto"))


def replica_report(load: EngineLoad, deep: Collection[str], at: float) -> ReplicaReport:
    """What a replica says of itself.

    Args:
        load: of its engine.
        deep: names of the modes that may take long. A preset with changes, "deep*", is as its base; a mode
            with a name of a request's own counts as quick.
        at: `time.time()`.
    """
    modes = load.modes
    slow = {name: name.removesuffix(CHANGED) in deep for name in modes}
    waits = {False: 0.0, True: 0.0}
    for name, mode in modes.items():
        waits[slow[name]] = max(waits[slow[name]], mode.oldest)
    waiting = {name: mode.waiting for name, mode in modes.items() if mode.waiting}
    return ReplicaReport(
        running={name: mode.running for name, mode in modes.items() if mode.running},
        waiting=waiting,
        deep=sum(mode.running + mode.waiting for name, mode in modes.items() if slow[name]),
        pages=load.pages,
        pages_free=load.pages_free,
        tokens_per_step={name: m.tokens_per_step for name, m in modes.items() if m.step_seconds},
        step_seconds={name: m.step_seconds for name, m in modes.items() if m.step_seconds},
        queue_seconds=max(waits.values()) if waiting else load.last_wait,
        prompt_rate=load.prompt_rate,
        at=at,
        urgent=sum(mode.targets for name, mode in modes.items() if not slow[name]),
        deep_queue_seconds=waits[True],
        quick_queue_seconds=waits[False],
        page_tokens=load.page_tokens,
        places=load.places,
    )
