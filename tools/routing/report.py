"""The load of experts and ranks as an HTML page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.tools.report.page import render
from fastslow.tools.report.plot import Bar, Plot, Point, Series
from fastslow.tools.routing.balance import KINDS, ROUTERS, Balance, per_rank

NAMES = {"grouped": "MoGE", "ungrouped": "ungrouped"}
COLOURS = {"grouped": 1, "ungrouped": 2}
LEGEND = {NAMES[router]: COLOURS[router] for router in ROUTERS}


def page(balance: Balance, title: str) -> str:
    """All charts.

    Args:
        balance: what was measured.
        title: of the page: which model, which prompts.
    """
    kinds = [_charts(balance, kind) for kind in KINDS if kind in balance.rows]
    return render("routing.html", title=title, ranks=balance.ranks, kinds=kinds)


def _charts(balance: Balance, kind: str) -> dict[str, Any]:
    """The charts of one kind of rows: deviation by layer, and two charts of the layer that is least even."""
    loads = {router: balance.loads[kind, router] for router in ROUTERS}
    deviations = {router: 100 * load.deviation(balance.ranks) for router, load in loads.items()}
    worst = int(deviations["ungrouped"].argmax())
    by_expert = {router: load.experts[worst] for router, load in loads.items()}
    by_rank = {router: per_rank(counts, balance.ranks) for router, counts in by_expert.items()}
    return {
        "rows": f"{kind}: {balance.rows[kind]} rows",
        "worst": worst,
        "layers": _layers(deviations),
        "by_rank": _bars(by_rank, "rank"),
        "by_expert": _bars(by_expert, "expert"),
    }


def _layers(deviations: dict[str, NDArray[np.float64]]) -> Plot:
    top = max(1.0, *(float(values.max()) for values in deviations.values())) * 1.08
    titles = "Spread across ranks, by layer", "layer with routed experts", "deviation over mean"
    layers = range(len(deviations["grouped"]))
    plot = Plot.columns(layers, *titles, top, y_suffix=" %", legend=LEGEND)
    for router, values in deviations.items():
        points = [
            Point(n, float(v), f"{NAMES[router]}, layer {n}: {v:.1f} %")
            for n, v in enumerate(values)
        ]
        plot.series.append(Series(COLOURS[router], points))
    return plot


def _bars(counts: dict[str, NDArray[np.int64]], noun: str) -> Plot:
    """Counts of both routers side by side, in percent of an even load."""
    bars = []
    for i, (router, values) in enumerate(counts.items()):
        for n, share in enumerate((100 * values / values.mean()).tolist()):
            note = f"{NAMES[router]}, {noun} {n}: {share:.0f} %"
            bars.append(Bar(n - 0.4 + 0.4 * i, 0.38, share, COLOURS[router], note))
    names, top = range(len(counts["grouped"])), 1.08 * max(bar.y for bar in bars)
    how: dict[str, Any] = {"y_suffix": " %", "level": (100, "even"), "legend": LEGEND}
    titles = (f"Load of each {noun}", noun, "of an even load")
    return Plot.columns(names, *titles, top, bars=bars, **how)
