"""What a replica says of itself, about once a second, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from loguru import logger

from fastslow.engine.params import CHANGED, shown

if TYPE_CHECKING:  # routers import no torch
    from fastslow.engine.core.load import EngineLoad

VERSION = 1  # of the fields below: replicas and routers of two versions may run beside each other
MOST_MODES = 65  # an engine counts 64 by name, and the rest as one

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(max_length=200)]
Counts = Annotated[Mapping[Name, Count], msgspec.Meta(max_length=MOST_MODES)]
Amounts = Annotated[Mapping[Name, Amount], msgspec.Meta(max_length=MOST_MODES)]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica at one moment.

    Attributes:
        running: answers in its steps, by mode.
        waiting: answers in its queue, by mode.
        deep: of both, those that may take long.
        pages: of keys and values, all.
        pages_free: empty, or cached without a user.
        tokens_per_step: that a request of a mode got from a step, over the last steps.
        step_seconds: that a step takes now with requests of a mode in it.
        queue_seconds: how long the oldest waits; where none waits, how long the latest waited.
        prompt_rate: prompt tokens that it reads in a second.
        at: `time.time()` of the report.
        urgent: of running and waiting, quick ones with a latency target.
        deep_queue_seconds: how long the oldest deep one waits now; 0: none waits.
        quick_queue_seconds: likewise of the others.
        page_tokens: tokens of a page.
        places: answers that may run together; 0: not known.
    """

    running: Counts
    waiting: Counts
    deep: Count
    pages: Count
    pages_free: Count
    tokens_per_step: Amounts
    step_seconds: Amounts
    queue_seconds: Amount
    prompt_rate: Amount
    at: Amount
    urgent: Count = 0
    deep_queue_seconds: Amount = 0.0
    quick_queue_seconds: Amount = 0.0
    page_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 16
    places: Count = 0
    version: int = field(default=VERSION)

    @property
    def answers(self) -> int:
        """All that run or wait."""
        return sum(self.running.values()) + sum(self.waiting.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @classmethod
    def from_dict(cls, values: object) -> ReplicaReport:
        """What `to_dict` gave, from another process.

        Raises:
            ValueError: it is of another version, or damaged; one sentence.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a report is an object, not {shown(values)}")
        version = values.get("version")
        if version != VERSION:
            raise ValueError(f"a report of version {shown(version)}; this router reads {VERSION}")
        try:
            report = msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"a damaged report: {error}") from None
        numbers = (
            *report.tokens_per_step.values(),
            *report.step_seconds.values(),
            report.queue_seconds,
            report.deep_queue_seconds,
            report.quick_queue_seconds,
            report.prompt_rate,
            report.at,
        )
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a damaged report: a number in it is not finite")
        return report


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


class ReportReader:
    """Remembers the latest report of each replica: routers are told all of them whenever one changes."""

    def __init__(self) -> None:
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._damaged: set[str] = set()

    def keep(self, ids: Collection[str]) -> None:
        """There are these replicas now."""
        self._latest = {id: values for id, values in self._latest.items() if id in ids}
        self._damaged &= set(ids)

    def read(self, id: str, values: Mapping[str, Any] | None) -> ReplicaReport | None:
        """A replica's report, if there is one that was not read before. One that is damaged, or of another
        version, counts as none; that is told once, until a good one comes."""
        if not values or self._latest.get(id) == values:
            return None
        self._latest[id] = values
        try:
            report = ReplicaReport.from_dict(values)
        except ValueError as error:
            if id not in self._damaged:
                logger.warning("replica {} is routed to as if it had not reported: {}", id, error)
            self._damaged.add(id)
            return None
        self._damaged.discard(id)
        return report
