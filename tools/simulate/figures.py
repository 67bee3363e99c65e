"""What a simulation, or a measurement, shows: percentiles by mode, prefix hits, cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastslow.tools.simulate.cluster import ClusterResult
from fastslow.tools.simulate.prefix_cache import SimulatedPrefixCache
from fastslow.tools.simulate.trace import ALL, TracedRequest

SHARES = 50, 95, 99  # percentiles


@dataclass(frozen=True, slots=True)
class AnswerTimes:
    """One answer's times in seconds.

    Attributes:
        first: from its arrival to its first token.
        end: from its arrival to its end; None = not known.
        cached: prompt tokens found in a cache; None = not known.
    """

    request: TracedRequest
    first: float
    end: float | None
    cached: int | None

    @property
    def each(self) -> float | None:
        """Seconds of each token after the first; None: there is no other, or the end is not known."""
        more = self.request.answer_tokens - 1
        return (self.end - self.first) / more if self.end is not None and more > 0 else None


@dataclass(frozen=True, slots=True)
class ModeFigures:
    """Answers of one mode, or all of them.

    Attributes:
        requests: how many.
        first, each: seconds to the first token, and of each later one: p50, p95, p99; () = not known.
        hit_rate: share of prompt tokens found in a prefix cache; None = not known.
        in_time: share of the answers with a target whose first token and whose mean later one kept it;
            None = none has one.
    """

    requests: int
    first: tuple[float, ...]
    each: tuple[float, ...]
    hit_rate: float | None
    in_time: float | None


@dataclass(frozen=True, slots=True)
class ClusterFigures:
    """One simulation.

    Attributes:
        router: its name.
        replicas: at first.
        modes: figures by mode, and of all.
        possible_hit_rate: what one cache without a limit would find.
        replica_hours: that replicas were there for.
        busy: share of these in which steps ran.
        tokens_per_second: of all answers.
        seconds, most_replicas, deaths, continued, preempted: see `ClusterResult`.
    """

    router: str
    replicas: int
    modes: dict[str, ModeFigures]
    possible_hit_rate: float
    replica_hours: float
    busy: float
    tokens_per_second: float
    seconds: float
    most_replicas: int
    deaths: int
    continued: int
    preempted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def figures(
    router: str, replicas: int, result: ClusterResult, possible_hit_rate: float
) -> ClusterFigures:
    """The figures of a simulation."""
    tokens = sum(answer.request.answer_tokens for answer in result.answers)
    return ClusterFigures(
        router=router,
        replicas=replicas,
        modes=by_mode(simulated_times(result)),
        possible_hit_rate=possible_hit_rate,
        replica_hours=result.replica_seconds / 3600,
        busy=result.busy_seconds / result.replica_seconds if result.replica_seconds else 0.0,
        tokens_per_second=tokens / result.seconds if result.seconds else 0.0,
        seconds=result.seconds,
        most_replicas=result.most_replicas,
        deaths=result.deaths,
        continued=result.continued,
        preempted=result.preempted,
    )


def simulated_times(result: ClusterResult) -> list[AnswerTimes]:
    """The times of a simulation's answers."""
    found = []
    for answer, end in zip(result.answers, result.ends, strict=True):
        arrival = answer.request.arrival
        assert answer.first is not None, "an answer that is over has a first token"
        found.append(
            AnswerTimes(answer.request, answer.first - arrival, end - arrival, answer.cached or 0)
        )
    return found


def measured_times(trace: Iterable[TracedRequest]) -> list[AnswerTimes]:
    """The times of recorded requests, of those that have any."""
    return [
        AnswerTimes(one, one.first_seconds, one.end_seconds, one.cached_tokens)
        for one in trace
        if one.first_seconds is not None
    ]


def by_mode(times: Sequence[AnswerTimes]) -> dict[str, ModeFigures]:
    """Figures of each mode, and of all under `ALL`."""
    modes = sorted({one.request.mode for one in times})
    groups = {ALL: list(times)} | {m: [t for t in times if t.request.mode == m] for m in modes}
    return {name: _figures(group) for name, group in groups.items()}


def _figures(times: Sequence[AnswerTimes]) -> ModeFigures:
    known = [(one.cached, one.request.prompt_tokens) for one in times if one.cached is not None]
    prompts = sum(tokens for _, tokens in known)
    targets = [one for one in times if one.request.latency_ms is not None]
    return ModeFigures(
        requests=len(times),
        first=_percentiles([one.first for one in times]),
        each=_percentiles([one.each for one in times if one.each is not None]),
        hit_rate=sum(cached for cached, _ in known) / prompts if prompts else None,
        in_time=sum(map(_in_time, targets)) / len(targets) if targets else None,
    )


def _in_time(times: AnswerTimes) -> bool:
    target = (times.request.latency_ms or 0.0) / 1000
    return times.first <= target and (times.each or 0.0) <= target


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.percentile(values, SHARES)) if values else ()


def possible_hit_rate(trace: Sequence[TracedRequest], page: int) -> float:
    """What one cache without a limit would find, if each prompt and answer were there when the next request
    comes."""
    cache = SimulatedPrefixCache(page)
    cached, prompts = 0, 0
    for one in trace:
        root = one.mode, one.memory_key
        own = one.prompt_tokens - sum(tokens for _, tokens in one.prefix)
        text = (*one.prefix, (one.id, own + one.answer_tokens))
        cached += cache.match(root, text, one.prompt_tokens - 1)[1]
        prompts += one.prompt_tokens
        cache.publish(root, text, [])
    return cached / prompts
