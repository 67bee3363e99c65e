"""Simulations of several numbers of replicas as a page, or as charts in one SVG file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastslow.tools.report.page import render
from fastslow.tools.report.plot import Plot, Point, Series
from fastslow.tools.simulate.figures import ClusterFigures
from fastslow.tools.simulate.routers import NAMES, ROUTERS
from fastslow.tools.simulate.trace import ALL

COLOURS = {router: place + 1 for place, router in enumerate(ROUTERS)}
TITLES = (
    "router",
    "replicas",
    "first p95",
    "token p95",
    "hits",
    "busy",
    "replica-hours",
    "per 1M tokens",
)

Value = Callable[[ClusterFigures], float | None]


def page(every: Sequence[ClusterFigures], over: str, title: str) -> str:
    """The page.

    Args:
        every: at least one simulation.
        over: the trace and the costs, in small letters.
        title: the headline.
    """
    rows = [
        (
            (
                NAMES[one.router],
                one.replicas,
                f"{one.modes[ALL].first[1]:.3f} s",
                f"{1000 * one.modes[ALL].each[1]:.1f} ms" if one.modes[ALL].each else "-",
                f"{one.modes[ALL].hit_rate or 0:.1%}",
                f"{one.busy:.0%}",
                f"{one.replica_hours:.2f}",
                f"{hours_of_a_million(one):.2f} h",
            ),
            "",
        )
        for one in every
    ]
    warnings = [] if len({one.replicas for one in every}) > 1 else ["One number of replicas only."]
    return render(
        "simulate.html",
        over=over,
        title=title,
        warnings=warnings,
        charts=charts(every),
        titles=TITLES,
        rows=rows,
    )


def svg(every: Sequence[ClusterFigures]) -> str:
    """The charts alone."""
    drawn = charts(every)
    return render(
        "charts.html", charts=[replace(c, legend={}) for c in drawn], legend=drawn[0].legend
    )


def charts(every: Sequence[ClusterFigures]) -> list[Plot]:
    """Waiting by mode, prefix hits, and cost, against the number of replicas."""
    modes = sorted({mode for one in every for mode in one.modes if mode != ALL})[:4]
    found = [_chart(every, f"First token of {m}, p95", "seconds", "s", _first(m)) for m in modes]
    found += [
        _chart(every, f"Later tokens of {m}, p95", "milliseconds", "ms", _each(m)) for m in modes
    ]
    hits = "Prompt tokens found in the prefix cache", "percent", "%"
    found.append(_chart(every, *hits, lambda f: 100 * (f.modes[ALL].hit_rate or 0.0)))
    found.append(_chart(every, "Cost", "replica-hours for 1M tokens", "h", hours_of_a_million))
    return found


def _first(mode: str) -> Value:
    return lambda one: one.modes[mode].first[1] if mode in one.modes else None


def _each(mode: str) -> Value:
    return lambda one: (
        1000 * one.modes[mode].each[1] if mode in one.modes and one.modes[mode].each else None
    )


def hours_of_a_million(one: ClusterFigures) -> float:
    """Replica-hours for a million answered tokens."""
    tokens = one.tokens_per_second * one.seconds
    return one.replica_hours / tokens * 1e6 if tokens else 0.0


def _chart(
    every: Sequence[ClusterFigures], title: str, words: str, unit: str, value: Value
) -> Plot:
    counts = sorted({one.replicas for one in every})
    place = {count: math.log2(count) for count in counts}
    routers = [router for router in ROUTERS if any(one.router == router for one in every)]
    series = []
    for router in routers:
        points = []
        for one in sorted(every, key=lambda f: f.replicas):
            found = value(one) if one.router == router else None
            if found is not None:
                note = f"{NAMES[router]}, {one.replicas} replicas: {found:.3g} {unit}"
                points.append(Point(place[one.replicas], found, note))
        series.append(Series(COLOURS[router], points))
    top = 1.08 * max((p.y for s in series for p in s.points), default=1.0)
    edge = 0.03 * (place[counts[-1]] - place[counts[0]] or 1.0)
    return Plot(
        title,
        "replicas",
        words,
        (place[counts[0]] - edge, place[counts[-1]] + edge),
        top,
        [(place[count], str(count)) for count in counts],
        series=series,
        legend={NAMES[router]: COLOURS[router] for router in routers},
    )
