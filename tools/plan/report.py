"""A plan as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from fastslow.tools.plan.search import PlanChoice
from fastslow.tools.report.page import render
from fastslow.tools.report.plot import Bar, Plot


def page(choices: Sequence[PlanChoice], title: str) -> str:
    """Tokens per second, and what a step is spent on, by draft length.

    Args:
        choices: at least one, see `search`.
        title: of the page: which model on which cards.
    """
    rates, terms = [], []
    names = list(asdict(choices[0].terms))
    for place, choice in enumerate(choices):
        note = f"{choice.nodes} drafted, batch {choice.batch}: {choice.rate:.1f} tokens/s per card"
        rates.append(Bar(place - 0.35, 0.7, choice.rate, 1, note, f"batch {choice.batch}"))
        for i, (name, seconds) in enumerate(asdict(choice.terms).items()):
            note = f"{choice.nodes} drafted, {name}: {1000 * seconds:.1f} ms"
            terms.append(Bar(place - 0.4 + 0.16 * i, 0.15, 1000 * seconds, i, note))
    parts = {name: colour for colour, name in enumerate(names)}
    return render(
        "plan.html",
        title=title,
        rates=_plot(choices, "tokens/s per card", rates, {}),
        terms=_plot(choices, "ms of a step", terms, parts),
    )


def _plot(
    choices: Sequence[PlanChoice], words: str, bars: list[Bar], legend: dict[str, int]
) -> Plot:
    nodes, top = [choice.nodes for choice in choices], 1.12 * max(bar.y for bar in bars)
    titles = (f"{words} by tokens drafted", "tokens drafted per request and step", words)
    return Plot.columns(nodes, *titles, top, bars=bars, legend=legend)
