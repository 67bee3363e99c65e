"""The report of `fastslow tune --modes`: two modes, and the choice between them."""

from __future__ import annotations

import json
import math

from fastslow.policies.features import LABELS
from fastslow.tools.report.page import conditions, render
from fastslow.tools.report.plot import Plot, Point, Series, ticks
from fastslow.tools.tune.modes import ModesFound
from fastslow.tools.tune.selector import FOLDS, Figures

GRADING = {
    "number": "by the last number said",
    "contains": "right if the answer is in what is said",
    "exact": "right if the whole text is the answer",
}
COLOURS = {"auto": 1, "escalating": 2, "built-in auto": 4}


def headline(found: ModesFound) -> str:
    """What choosing gives, in a sentence."""
    cheap, good = found.modes
    low, high = found.figures[cheap].accuracy, found.figures[good].accuracy
    if high <= low:
        return (
            f"On {len(found.pairs)} tasks, {good} is no better than {cheap} ({high:.0%} and {low:.0%} "
            f"right): {cheap} is the mode to take."
        )
    name = best_way(found)
    kept = found.kept(name) or 0.0
    return (
        f"On {len(found.pairs)} tasks, {name} keeps {kept:.0%} of what {good} is better by "
        f"({low:.0%} to {high:.0%} right) in {found.of_time(name):.0%} of its time."
    )


def best_way(found: ModesFound) -> str:
    """auto or escalating: the cheaper of those that keep enough, else the one that keeps more."""
    ways = ("auto", "escalating")
    able = [w for w in ways if (found.kept(w) or 0.0) >= found.keep - 0.05]
    if able:
        return min(able, key=found.of_time)
    return max(ways, key=lambda w: found.kept(w) or 0.0)


def page(found: ModesFound, settings: str) -> str:
    """The whole report as HTML. settings: name of the settings file."""
    name, model = json.dumps(settings, ensure_ascii=False), json.dumps(found.model)
    code = f'llm = LLM({model}, auto={name})\nllm.chat(prompt, mode="auto")'
    if found.escalation is not None:
        code += f'\n\nllm = LLM({model}, modes={name})\nllm.chat(prompt, mode="escalating")'
    took = f"{found.seconds / 60:.1f} minutes, {len(found.pairs)} tasks in both modes"
    own = {
        "took": f"{took}, {found.batch} at a time, plain decoding",
        "grading": "; ".join(f"{n} {GRADING[kind]}" for kind, n in found.grading.items()),
        "held out": f"{FOLDS} folds; thresholds were chosen inside the folds that weights were fitted to",
        "answers": json.dumps(found.sampling.model_dump(mode="json", exclude_defaults=True)),
    }
    way = best_way(found)
    figures = found.figures[way]
    return render(
        "modes.html",
        found=found,
        headline=headline(found),
        tiles=[
            (_share(found.kept(way)), f"of the gain kept by {way}"),
            (f"{found.of_time(way):.0%}", f"of the time of {found.modes[1]}"),
            (f"{figures.accuracy:.1%}", f"right with {way}"),
            (f"{figures.good:.0%}", f"of tasks go to {found.modes[1]}"),
        ],
        code=code,
        frontier=_frontier(found),
        rows=[(_row(found, name), "best" if name == way else "") for name in found.figures],
        weights=_weights(found),
        conditions=conditions(own, found.circumstances),
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _row(found: ModesFound, name: str) -> list[str]:
    figures = found.figures[name]
    error = math.sqrt(figures.accuracy * (1 - figures.accuracy) / len(found.pairs))
    return [
        name,
        f"{figures.accuracy:.1%} ± {error:.1%}",
        _share(found.kept(name)),
        f"{1000 * figures.seconds:.0f}",
        f"{found.of_time(name):.0%}",
        f"{figures.good:.0%}",
    ]


def _weights(found: ModesFound) -> list[tuple[str, float, float, float]]:
    """Label, weight and mean of each feature, the strongest first, and its part of the strongest."""
    selector = found.selector
    ranked = sorted(selector.means, key=lambda name: -abs(selector.weights[name]))
    most = max((abs(selector.weights[name]) for name in ranked), default=1.0) or 1.0
    return [
        (LABELS[name], weight, selector.means[name], abs(weight) / most)
        for name in ranked
        for weight in (selector.weights[name],)
    ]


def _frontier(found: ModesFound) -> Plot:
    """Accuracy against mean seconds: both modes, and what lies between."""
    every = [*found.figures.values(), *found.frontier, *found.escalations]
    widest = ticks(1.04 * max(f.seconds for f in every))
    unit, words = (1000, "ms") if widest[-1] < 2 else (1, "s")

    def place(f: Figures, note: str, hollow: bool = False) -> Point:
        text = f"{note}: {f.accuracy:.1%} right, {unit * f.seconds:.3g} {words}"
        return Point(unit * f.seconds, 100 * f.accuracy, text, hollow)

    ends = sorted(found.modes, key=lambda mode: found.figures[mode].seconds)
    chance = [place(found.figures[mode], mode) for mode in ends]
    plot = Plot(
        title="Accuracy against time",
        x_title=f"mean time of an answer, {words}",
        y_title="right",
        x_range=(0.0, unit * widest[-1]),
        y_top=min(100.0, 108 * max(f.accuracy for f in every)),
        x_labels=[(unit * x, f"{unit * x:g}") for x in widest],
        y_suffix=" %",
        series=[Series(0, chance, dashed=True)],
        labels=[(point.x, point.y, mode) for point, mode in zip(chance, ends)],
        legend=COLOURS,
    )
    for name, curve in (("auto", found.frontier), ("escalating", found.escalations)):
        points = [place(f, f"{name}, {f.good:.0%} go on", True) for f in curve]
        plot.series.append(Series(COLOURS[name], points, radius=2.6))
    for name, colour in COLOURS.items():
        plot.series.append(Series(colour, [place(found.figures[name], name)]))
    return plot
