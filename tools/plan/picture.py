"""A plan as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from fastslow.tools.plan.search import PlanChoice
from fastslow.tools.tune.html import Plot, document, legend, tag


def page(choices: Sequence[PlanChoice], title: str) -> str:
    """Tokens per second, and what a step is spent on, by draft length.

    Args:
        choices: at least one, see `search`.
        title: of the page: which model on which cards.

    Returns:
        HTML without scripts and without anything to load, in light and dark.
    """
    pictures = (("Tokens a second and card", _rates(choices)), ("A step", _terms(choices)))
    sections = (
        tag("section", tag("h2", words) + tag("div", plot, class_="wide"))
        for words, plot in pictures
    )
    return document(title, [tag("h1", escape(title)), *sections])


def _rates(choices: Sequence[PlanChoice]) -> str:
    plot = _plot(choices, "tokens/s per card", max(c.rate for c in choices))
    for place, choice in enumerate(choices):
        note = f"{choice.nodes} drafted, batch {choice.batch}: {choice.rate:.1f} tokens/s per card"
        plot.bar(place - 0.35, 0.7, choice.rate, 1, note)
        plot.note(place, choice.rate, f"batch {choice.batch}")
    return plot.render()


def _terms(choices: Sequence[PlanChoice]) -> str:
    """One bar each for what a step's time is spent on."""
    names = list(asdict(choices[0].terms))
    parts = [asdict(choice.terms) for choice in choices]
    plot = _plot(choices, "ms of a step", max(1000 * max(p.values()) for p in parts))
    for place, part in enumerate(parts):
        for i, (name, seconds) in enumerate(part.items()):
            note = f"{choices[place].nodes} drafted, {name}: {1000 * seconds:.1f} ms"
            plot.bar(place - 0.4 + 0.16 * i, 0.15, 1000 * seconds, i, note)
    return plot.render() + legend((name, i) for i, name in enumerate(names))


def _plot(choices: Sequence[PlanChoice], words: str, top: float) -> Plot:
    return Plot(
        title=f"{words} by tokens drafted",
        x_title="tokens drafted per request and step",
        y_title=words,
        x_range=(-0.5, len(choices) - 0.5),
        y_top=1.12 * top,
        x_labels=[(place, str(choice.nodes)) for place, choice in enumerate(choices)],
    )
