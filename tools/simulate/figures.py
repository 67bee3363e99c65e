"""What a simulation, or a recording, shows: percentiles by mode, prefix hits, cost, and both compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastslow.tools.simulate.cluster import ClusterResult
from fastslow.tools.simulate.replica import PrefixCache
from fastslow.tools.simulate.trace import ALL, TracedRequest

SHARES = 50, 95, 99  # percentiles
COMPARED = 50, 95  # those of a simulation and a recording


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

    @property
    def in_time(self) -> bool:
        """Whether the first token and the mean later one kept the target."""
        target = (self.request.latency_ms or 0.0) / 1000
        return self.first <= target and (self.each or 0.0) <= target


@dataclass(frozen=True, slots=True)
class ModeFigures:
    """Answers of one mode, or all of them.

    Attributes:
        requests: how many.
        first, each: seconds to the first token, and of each later one: p50, p95, p99; () = not known.
        hit_rate: share of prompt tokens found in a prefix cache; None = not known.
        in_time: share of the answers with a target that kept it; None = none has one.
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
        replicas: how many.
        modes: figures by mode, and of all.
        possible_hit_rate: what one cache without a limit would find.
        replica_hours, hours_per_million: that replicas were there for; the same for a million answered tokens.
        busy: share of these in which steps ran.
    """

    replicas: int
    modes: dict[str, ModeFigures]
    possible_hit_rate: float
    replica_hours: float
    hours_per_million: float
    busy: float


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of one mode, simulated and measured; seconds.

    Attributes:
        what: "first token" or "each later one".
        off: how far the simulation is off, as a share of what was measured.
    """

    mode: str
    what: str
    percentile: int
    measured: float
    simulated: float
    off: float


def figures(replicas: int, result: ClusterResult, possible_hit_rate: float) -> ClusterFigures:
    """The figures of a simulation."""
    tokens = sum(answer.request.answer_tokens for answer in result.answers)
    hours = result.replica_seconds / 3600
    return ClusterFigures(
        replicas=replicas,
        modes=by_mode(simulated_times(result)),
        possible_hit_rate=possible_hit_rate,
        replica_hours=hours,
        hours_per_million=1e6 * hours / tokens,
        busy=result.busy_seconds / result.replica_seconds if result.replica_seconds else 0.0,
    )


def simulated_times(result: ClusterResult) -> list[AnswerTimes]:
    """The times of a simulation's answers."""
    return [
        AnswerTimes(a.request, a.first - a.request.arrival, a.end - a.request.arrival, a.cached)
        for a in result.answers
    ]


def measured_times(trace: Iterable[TracedRequest]) -> list[AnswerTimes]:
    """The times of recorded requests, of those that have any."""
    return [
        AnswerTimes(one, one.first_seconds, one.end_seconds, one.cached_tokens)
        for one in trace
        if one.first_seconds is not None
    ]


def by_mode(times: Sequence[AnswerTimes]) -> dict[str, ModeFigures]:
    """Figures of all answers under `ALL`, and of each mode."""
    modes = sorted({one.request.mode for one in times})
    groups = {ALL: times} | {m: [t for t in times if t.request.mode == m] for m in modes}
    return {name: _figures(group) for name, group in groups.items()}


def _figures(times: Sequence[AnswerTimes]) -> ModeFigures:
    known = [(one.cached, one.request.prompt_tokens) for one in times if one.cached is not None]
    prompts = sum(tokens for _, tokens in known)
    targets = [one.in_time for one in times if one.request.latency_ms is not None]
    return ModeFigures(
        requests=len(times),
        first=_percentiles([one.first for one in times]),
        each=_percentiles([one.each for one in times if one.each is not None]),
        hit_rate=sum(cached for cached, _ in known) / prompts if prompts else None,
        in_time=sum(targets) / len(targets) if targets else None,
    )


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.percentile(values, SHARES)) if values else ()


def possible_hit_rate(trace: Sequence[TracedRequest], page: int) -> float:
    """What one cache without a limit would find, if each prompt and answer were there when the next request
    comes. page: tokens that are found only together."""
    cache, cached = PrefixCache(), 0
    for one in trace:
        found = cache.match(one.mode, one.text())[1]
        cached += min(found, one.prompt_tokens - 1) // page * page
        cache.publish(one.mode, one.text(one.answer_tokens), [])
    return cached / sum(one.prompt_tokens for one in trace)


def compare(
    measured: Sequence[AnswerTimes], simulated: Sequence[AnswerTimes]
) -> list[ComparedFigure]:
    """The figures of those requests that were measured.

    Raises:
        ValueError: none was measured, or one was not simulated, or in another mode.
    """
    if not measured:
        raise ValueError(
            "nothing to compare with: no request of the recorded trace has first_seconds"
        )
    known = {(one.request.id, one.request.mode) for one in measured}
    alike = [one for one in simulated if (one.request.id, one.request.mode) in known]
    if len(alike) != len(known):
        raise ValueError(
            f"{len(known) - len(alike)} of {len(known)} measured requests are not in the trace, or in another "
            "mode: simulate the recorded one"
        )
    ours, found = by_mode(alike), []
    for mode, wanted in by_mode(measured).items():
        for what, there, here in (
            ("first token", wanted.first, ours[mode].first),
            ("each later one", wanted.each, ours[mode].each),
        ):
            for share, one, other in zip(SHARES, there, here, strict=False):
                if share in COMPARED:
                    off = other / one - 1 if one else 0.0
                    found.append(ComparedFigure(mode, what, share, one, other, off))
    return found
