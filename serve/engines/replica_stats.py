"""The figures of several engines as those of one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

NOW = (  # what an engine holds at this moment; all else counts up
    *("running", "waiting", "pages", "pages_used", "pages_free", "pages_cached"),
    *("pages_pinned", "pages_spilled"),
    *("states", "states_used", "states_cached", "states_free", "state_bytes"),
    *("windows", "windows_used", "windows_cached", "windows_free"),
)
MOST_GONE = 256  # replicas whose figures are kept apart after their end


class StatsSum:
    """Sums that never go back: what a replica had counted stays in them when it is gone."""

    def __init__(self) -> None:
        self.gone = 0  # replicas that ended or fell silent
        self.answered: Mapping[str, Mapping[str, Any]] = {}  # what each said last, by its id
        self._at: dict[str, float] = {}  # when that was, of `time.monotonic`
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._gone: dict[str, Any] = {}

    def of(self, found: Mapping[str, Mapping[str, Any]], missing: int = 0) -> dict[str, Any]:
        """`EngineStats.to_dict()` of all together, with those of each replica under "replicas". `age_seconds`: how
        old they are; of all, the oldest. found: what replicas say now, by their ids. missing: how many have not said
        anything: what they said before counts."""
        silent = [id for id in self.answered if id not in found]
        answered = {id: self.answered[id] for id in silent[:missing]} | dict(found)
        self.gone += len(set(self.answered) - set(answered))
        self.answered = answered
        now = time.monotonic()
        self._at.update((id, now - one.get("age_seconds", 0.0)) for id, one in found.items())
        self._at = {id: self._at[id] for id in answered}
        ages = {id: round(now - at, 3) for id, at in self._at.items()}
        gone = [id for id in self._latest if id not in answered]
        for id in gone:
            self._latest[id] = {**self._latest[id], **dict.fromkeys(NOW, 0)}
        for id in gone[: max(0, len(gone) - MOST_GONE)]:
            self._gone = _added(self._gone, self._latest.pop(id))
        self._latest.update(answered)
        total: dict[str, Any] = dict(self._gone)
        for stats in self._latest.values():
            total = _added(total, stats)
        return _with_rates(total) | {
            "age_seconds": max(ages.values(), default=0.0),
            "replicas_gone": self.gone,
            "replicas": {
                id: {name: value for name, value in one.items() if not isinstance(value, Mapping)}
                | {"age_seconds": ages[id]}
                for id, one in answered.items()
            },
        }


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers add up by name, in objects and by place in lists."""
    together = dict(one)
    for name, value in other.items():
        before = together.get(name)
        if isinstance(value, Mapping):
            together[name] = _added(before or {}, value)
        elif isinstance(value, list | tuple):
            together[name] = [a + b for a, b in zip_longest(value, before or (), fillvalue=0)]
        else:
            together[name] = value + (before or 0)
    return together


def _with_rates(total: dict[str, Any]) -> dict[str, Any]:
    drafters = {
        name: one | {"acceptance_rate": _share(one["accepted"], one["offered"])}
        for name, one in total.get("drafters", {}).items()
    }
    hits = _share(total.get("cached_tokens", 0), total.get("prompt_tokens", 0))
    return total | {"drafters": drafters, "prefix_hit_rate": hits}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
