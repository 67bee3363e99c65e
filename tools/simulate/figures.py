"""Figures of a simulation, or of a recording: times of requests by mode, prefix hits, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastslow.tools.simulate.replica import AnswerState
from fastslow.tools.simulate.trace import ALL, TracedRequest

SHARES = 50, 95, 99  # percentiles


@dataclass(frozen=True, slots=True)
class ModeFigures:
    """Answers of one mode, or all of them."""

    requests: int
    first: tuple[float, ...]  # seconds to the first token: p50, p95, p99
    each: tuple[float, ...]  # likewise of each later token; () = there is none
    hit_rate: float  # share of prompt tokens found in a prefix cache
    in_time: float | None  # of the answers with a target, those that kept it; None = none has one


@dataclass(frozen=True, slots=True)
class ClusterFigures:
    """Figures of one simulation."""

    replicas: int
    modes: dict[str, ModeFigures]  # and of all
    replica_hours: float  # that replicas were there for
    hours_per_million: float  # the same for a million answered tokens


def figures(
    replicas: int, answers: Sequence[AnswerState], replica_seconds: float
) -> ClusterFigures:
    """The figures of a simulation."""
    tokens = sum(answer.request.answer_tokens for answer in answers)
    hours = replica_seconds / 3600
    return ClusterFigures(replicas, by_mode(answers), hours, 1e6 * hours / tokens)


def measured(trace: Iterable[TracedRequest]) -> list[AnswerState]:
    """The answers of recorded requests, of those that have their times."""
    return [
        AnswerState(
            one,
            first=one.arrival + one.first_seconds,
            end=one.arrival + one.end_seconds,
            cached=one.cached_tokens or 0,
        )
        for one in trace
        if one.first_seconds is not None and one.end_seconds is not None
    ]


def by_mode(answers: Sequence[AnswerState]) -> dict[str, ModeFigures]:
    """Figures of all answers under `ALL`, and of each mode; {}: there is no answer."""
    groups: dict[str, list[AnswerState]] = {}
    for one in sorted(answers, key=lambda one: one.request.mode):
        groups.setdefault(ALL, []).append(one)
        groups.setdefault(one.request.mode, []).append(one)
    return {name: _figures(group) for name, group in groups.items()}


def _figures(answers: Sequence[AnswerState]) -> ModeFigures:
    prompts = sum(one.request.prompt_tokens for one in answers)
    targets = [one.in_time for one in answers if one.request.latency_ms is not None]
    return ModeFigures(
        requests=len(answers),
        first=_percentiles([one.first_after for one in answers]),
        each=_percentiles([one.each for one in answers if one.request.answer_tokens > 1]),
        hit_rate=sum(one.cached for one in answers) / prompts,
        in_time=sum(targets) / len(targets) if targets else None,
    )


def _percentiles(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.percentile(values, SHARES)) if values else ()
