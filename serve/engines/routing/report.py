"""Report of a replica on itself, about once a second, as plain JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from loguru import logger

from fastslow.engine.params import CHANGED

if TYPE_CHECKING:  # routers import no torch
    from fastslow.engine.core.stats import EngineLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """Part of a report that decides how many replicas there should be."""

    deep: int = 0  # answers that run or wait and may take long
    deep_queue_seconds: float = 0.0  # how long the oldest deep one waits now; 0: none waits
    quick_queue_seconds: float = 0.0  # likewise of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport(QueueReport):
    """A replica at one moment."""

    running: Mapping[str, int]  # answers in its steps, by mode
    waiting: Mapping[str, int]  # likewise in its queue
    pages: int  # of keys and values, all
    step_seconds: Mapping[str, float]  # of a step now with requests of a mode in it
    queue_seconds: float  # the oldest waits so long; where none waits, the latest waited so long
    prompt_rate: float  # prompt tokens that it reads in a second
    at: float  # `time.time()` of the report
    urgent: int = 0  # of running and waiting, quick ones with a latency target
    page_tokens: int = 16
    places: int = 0  # answers that may run together; 0: not known

    @property
    def answers(self) -> int:
        """All that run or wait."""
        return sum(self.running.values()) + sum(self.waiting.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def replica_report(load: EngineLoad, deep: Collection[str], at: float) -> ReplicaReport:
    """Make a replica's report at `time.time()`. deep: names of the modes that may take long. A preset with
    changes, "deep*", is as its base; a mode with a name of a request's own counts as quick."""
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


def read_report(values: Mapping[str, Any]) -> ReplicaReport | None:
    """The report of another process; None where it has not given one yet, or one of another version."""
    try:
        return msgspec.convert(values, ReplicaReport) if values else None
    except msgspec.ValidationError as error:
        logger.warning("a replica is routed to as if it had not reported: {}", error)
        return None
