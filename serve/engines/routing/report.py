"""What a replica says of itself, about once a second, as plain JSON values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from loguru import logger

from fastslow.engine.params import CHANGED

if TYPE_CHECKING:  # routers import no torch
    from fastslow.engine.core.stats import EngineLoad

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """What of a report decides how many replicas there should be.

    Attributes:
        deep: answers that run or wait and may take long.
        deep_queue_seconds: how long the oldest deep one waits now; 0: none waits.
        quick_queue_seconds: likewise of the others.
    """

    deep: Count = 0
    deep_queue_seconds: Amount = 0.0
    quick_queue_seconds: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport(QueueReport):
    """A replica at one moment.

    Attributes:
        running: answers in its steps, by mode.
        waiting: answers in its queue, by mode.
        pages: of keys and values, all.
        step_seconds: that a step takes now with requests of a mode in it.
        queue_seconds: how long the oldest waits; where none waits, how long the latest waited.
        prompt_rate: prompt tokens that it reads in a second.
        at: `time.time()` of the report.
        urgent: of running and waiting, quick ones with a latency target.
        page_tokens: tokens of a page.
        places: answers that may run together; 0: not known.
    """

    running: Mapping[str, Count]
    waiting: Mapping[str, Count]
    pages: Count
    step_seconds: Mapping[str, Amount]
    queue_seconds: Amount
    prompt_rate: Amount
    at: Amount
    urgent: Count = 0
    page_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 16
    places: Count = 0

    @property
    def answers(self) -> int:
        """All that run or wait."""
        return sum(self.running.values()) + sum(self.waiting.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


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


class ReportReader:
    """Reads reports of other processes. A damaged one, or one of another version, counts as none."""

    def __init__(self) -> None:
        self._damaged: set[str] = set()  # replicas, of which the log has a line

    def read(self, id: str, values: Mapping[str, Any] | None) -> ReplicaReport | None:
        """A replica's report, where it gave one that can be read."""
        if not values:
            return None
        try:
            report = msgspec.convert(values, ReplicaReport)
        except msgspec.ValidationError as error:
            if id not in self._damaged:
                logger.warning("replica {} is routed to as if it had not reported: {}", id, error)
            self._damaged.add(id)
            return None
        self._damaged.discard(id)
        return report
