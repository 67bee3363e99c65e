"""The report on two modes and the choice between them."""

from __future__ import annotations

import json
import math
from html import escape

from fastslow.policies.features import LABELS
from fastslow.tools.tune.html import (
    Plot,
    Point,
    Series,
    document,
    facts,
    head,
    legend,
    section,
    table,
    tag,
    ticks,
    tiles,
    use,
)
from fastslow.tools.tune.modes import ModesFound
from fastslow.tools.tune.selector import FOLDS, Figures

FRONTIER = """\
Up is better, left is faster. The dashed line is what tossing a coin between the two modes would give; a
way to choose is worth its name above it. Curves are the thresholds of a fitted selector and of
escalation, on tasks that the fit did not see; large points are the settings that were chosen."""
WAYS = """\
auto looks at the prompt before anything runs. escalating answers fast, watches how sure the model is of
its words, and begins again in the better mode where it is not. "built-in auto" is auto before this fit."""
WEIGHTS = """\
Blue speaks for the better mode and red against it. The score adds up to log-odds that the better mode is
right where the cheaper one is wrong."""
DECISIONS = "What the selector says of some of the tasks, as `out.metrics.decision` will."
GRADING = {
    "number": "by the last number said",
    "contains": "right if the answer is in what is said",
    "exact": "right if the whole text is the answer",
}
COLOURS = {"auto": 1, "escalating": 2, "built-in auto": 4}
QUESTION = 200  # characters shown of a task


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
    """Of auto and escalating: the cheaper of those that keep enough, else the one that keeps more."""
    ways = ("auto", "escalating")
    able = [w for w in ways if (found.kept(w) or 0.0) >= found.keep - 0.05]
    if able:
        return min(able, key=found.of_time)
    return max(ways, key=lambda w: found.kept(w) or 0.0)


def choosing_page(found: ModesFound, settings: str) -> str:
    """The whole report: HTML that needs nothing else. `settings`: name of the settings file."""
    over = f"fastslow tune --modes · {found.model} · {' or '.join(found.modes)}"
    warnings = ["It was stopped early: fewer tasks were answered."] if found.stopped else []
    name = json.dumps(settings, ensure_ascii=False)
    code = f'llm = LLM({json.dumps(found.model)}, auto={name})\nllm.chat(prompt, mode="auto")'
    if found.escalation is not None:
        code += f"\n\nllm = LLM({json.dumps(found.model)}, modes={name})\n"
        code += 'llm.chat(prompt, mode="escalating")'
    grading = "; ".join(f"{n} {GRADING[kind]}" for kind, n in found.grading.items())
    took = f"{found.seconds / 60:.1f} minutes, {len(found.pairs)} tasks in both modes"
    own = {
        "took": f"{took}, {found.batch} at a time, plain decoding",
        "grading": grading,
        "held out": f"{FOLDS} folds; thresholds were chosen inside the folds that weights were fitted to",
        "answers": json.dumps(found.sampling.model_dump(mode="json", exclude_defaults=True)),
    }
    body = [
        head(over, headline(found), warnings),
        _tiles(found),
        use(code),
        section("Accuracy against time", FRONTIER, frontier_chart(found)),
        section("Ways to choose", WAYS, _table(found)),
        section("What the selector looks at", WEIGHTS, _weights(found)),
        section("Some decisions", DECISIONS, _decisions(found)),
        facts(own, found.circumstances),
    ]
    return document(f"fastslow tune --modes: {found.model}", body)


def frontier_chart(found: ModesFound) -> str:
    """Accuracy against mean seconds: both modes, and what lies between."""
    cheap, good = (found.figures[mode] for mode in found.modes)
    every = [*found.figures.values(), *found.frontier, *found.doubts]
    widest = ticks(1.04 * max(f.seconds for f in every))
    unit, words = (1000, "ms") if widest[-1] < 2 else (1, "s")
    plot = Plot(
        title="Accuracy against time",
        x_title=f"mean time of an answer, {words}",
        y_title="right",
        x_range=(0.0, unit * widest[-1]),
        y_top=min(100.0, 108 * max(f.accuracy for f in every)),
        x_labels=[(unit * x, f"{unit * x:g}") for x in widest],
        y_suffix=" %",
    )

    def place(f: Figures, note: str, hollow: bool = False) -> Point:
        said = f"{note}: {f.accuracy:.1%} right, {unit * f.seconds:.3g} {words}"
        return Point(unit * f.seconds, 100 * f.accuracy, said, hollow)

    ends = sorted(zip(found.modes, (cheap, good)), key=lambda end: end[1].seconds)
    plot.draw(Series("chance", 0, [place(f, mode) for mode, f in ends], dashed=True))
    curves = {"auto": found.frontier, "escalating": found.doubts}
    for name, figures in curves.items():
        points = [place(f, f"{name}, {f.good:.0%} go on", True) for f in figures]
        plot.draw(Series(name, COLOURS[name], points, small=True))
    for name, colour in COLOURS.items():
        figures_of = found.figures[name]
        plot.draw(Series(name, colour, [place(figures_of, name)]))
    for mode, f in ends:
        plot.note(unit * f.seconds, 100 * f.accuracy, mode)
    return plot.render() + legend([(name, number) for name, number in COLOURS.items()])


def _tiles(found: ModesFound) -> str:
    way = best_way(found)
    figures, kept = found.figures[way], found.kept(way)
    return tiles(
        [
            ("-" if kept is None else f"{kept:.0%}", f"of the gain kept by {way}"),
            (f"{found.of_time(way):.0%}", f"of the time of {found.modes[1]}"),
            (f"{figures.accuracy:.1%}", f"right with {way}"),
            (f"{figures.good:.0%}", f"of tasks go to {found.modes[1]}"),
        ]
    )


def _table(found: ModesFound) -> str:
    count = len(found.pairs)
    best = best_way(found)
    rows = []
    for name, f in found.figures.items():
        kept = found.kept(name)
        error = math.sqrt(f.accuracy * (1 - f.accuracy) / count)
        cells = [
            name,
            f"{f.accuracy:.1%} ± {error:.1%}",
            "-" if kept is None else f"{kept:.0%}",
            f"{1000 * f.seconds:.0f}",
            f"{found.of_time(name):.0%}",
            f"{f.good:.0%}",
        ]
        rows.append((cells, "best" if name == best else ""))
    titles = ("way", "right", "of the gain", "ms", "of the time", f"in {found.modes[1]}")
    return table(titles, rows)


def _weights(found: ModesFound) -> str:
    selector = found.selector
    spread = {n: selector.weights[n] for n in selector.means}
    ranked = sorted(spread.items(), key=lambda item: -abs(item[1]))
    most = max((abs(w) for _, w in ranked), default=1.0) or 1.0
    lines = []
    for name, weight in ranked:
        colour = 1 if weight > 0 else 5
        meter = tag("i", style=f"width:{100 * abs(weight) / most:.1f}%")
        lines.append(
            tag(
                "tr",
                tag("td", escape(LABELS[name]))
                + tag("td", meter, class_=f"meter c{colour}")
                + tag("td", f"{weight:+.2f}")
                + tag("td", f"{selector.means[name]:.1f}"),
            )
        )
    head_row = tag("tr", "".join(tag("th", t) for t in ("feature", "", "for each unit", "usual")))
    return tag("table", head_row + "".join(lines)) if lines else ""


def _decisions(found: ModesFound) -> str:
    articles = []
    for task, why in found.decisions:
        asked = task.prompt[-1]["content"]
        shown = asked if len(asked) <= QUESTION else f"{asked[:QUESTION].rstrip()} ..."
        said = tag("p", escape(shown), class_="asked") + tag("p", tag("code", escape(why)))
        articles.append(tag("article", said))
    return "".join(articles)
