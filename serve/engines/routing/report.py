"""What a replica says of itself, about once a second, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from fastslow.engine.params import shown

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
