"""The balance of routers as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape

import numpy as np

from fastslow.tools.routing.balance import KINDS, ROUTERS, Balance, ExpertLoad, per_rank
from fastslow.tools.tune.html import Plot, Point, Series, document, legend, tag

NAMES = {"grouped": "MoGE", "ungrouped": "ungrouped"}
COLOURS = {"grouped": 1, "ungrouped": 2}
LAYERS = """\
The standard deviation of the tokens of a rank, over their mean, in each layer, over all rows
together. With whole groups on a rank it is zero, whatever the input."""
RANKS = "Tokens of each rank against an even load, in the layer where the ungrouped choice is least even."
EXPERTS = "Tokens of each expert against an even load, in the same layer."


def page(balance: Balance, title: str) -> str:
    """All pictures.

    Args:
        balance: what was measured.
        title: of the page: which model, which prompts.

    Returns:
        HTML without scripts and without anything to load, in light and dark.
    """
    parts = [tag("h1", escape(title))]
    for kind in (kind for kind in KINDS if kind in balance.rows):
        loads = {router: balance.loads[kind, router] for router in ROUTERS}
        worst = int(loads["ungrouped"].spread(balance.ranks).argmax())
        rows = f"{kind}: {balance.rows[kind]} rows"
        for words, hint, plot in (
            (f"Spread across {balance.ranks} ranks", LAYERS, _layers(loads, balance.ranks)),
            (f"Ranks, layer {worst}", RANKS, _bars(_ranks(loads, worst, balance.ranks), "rank")),
            (f"Experts, layer {worst}", EXPERTS, _bars(_experts(loads, worst), "expert")),
        ):
            head = tag("h2", escape(f"{words} ({rows})")) + tag("p", escape(hint), class_="hint")
            keys = legend((NAMES[router], COLOURS[router]) for router in ROUTERS)
            parts.append(tag("section", head + tag("div", plot, class_="wide") + keys))
    return document(title, parts)


def _layers(loads: dict[str, ExpertLoad], ranks: int) -> str:
    spreads = {router: 100 * load.spread(ranks) for router, load in loads.items()}
    count = len(spreads["grouped"])
    plot = Plot(
        title="Spread across ranks, by layer",
        x_title="layer with routed experts",
        y_title="standard deviation over mean",
        x_range=(-0.5, count - 0.5),
        y_top=max(1.0, *(float(s.max()) for s in spreads.values())) * 1.08,
        x_labels=[(n, str(n)) for n in range(0, count, 1 + count // 16)],
        y_suffix=" %",
    )
    for router, values in spreads.items():
        points = [
            Point(n, float(v), f"{NAMES[router]}, layer {n}: {v:.1f} %")
            for n, v in enumerate(values)
        ]
        plot.draw(Series(router, COLOURS[router], points))
    return plot.render()


def _ranks(loads: dict[str, ExpertLoad], layer: int, ranks: int) -> dict[str, list[float]]:
    return {r: _even(per_rank(load.experts[layer], ranks)) for r, load in loads.items()}


def _experts(loads: dict[str, ExpertLoad], layer: int) -> dict[str, list[float]]:
    return {router: _even(load.experts[layer]) for router, load in loads.items()}


def _even(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[float]:
    shares: list[float] = (100 * counts / counts.mean()).tolist()
    return shares


def _bars(values: dict[str, list[float]], noun: str) -> str:
    count = len(values["grouped"])
    plot = Plot(
        title=f"Load of each {noun}",
        x_title=noun,
        y_title="of an even load",
        x_range=(-0.5, count - 0.5),
        y_top=1.08 * max(max(v) for v in values.values()),
        x_labels=[(n, str(n)) for n in range(0, count, 1 + count // 16)],
        y_suffix=" %",
    )
    plot.level(100, "even")
    for i, (router, shares) in enumerate(values.items()):
        for n, share in enumerate(shares):
            note = f"{NAMES[router]}, {noun} {n}: {share:.0f} %"
            plot.bar(n - 0.4 + 0.4 * i, 0.38, share, COLOURS[router], note)
    return plot.render()
