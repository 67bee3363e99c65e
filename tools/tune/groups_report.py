"""The report of `fastslow tune --groups`: what fewer groups, or fewer experts, change."""

from __future__ import annotations

import json

from fastslow.tools.report.page import conditions, render
from fastslow.tools.report.plot import Bar, Plot, Point, Series
from fastslow.tools.tune.groups import GroupsFound

ENOUGH_PLACES = 1000  # tokens compared: with fewer the agreement is off by more than 1 to 2%


def headline(found: GroupsFound) -> str:
    """What is proposed, in a sentence."""
    row, all_, noun = found.proposed, found.all, found.units.name
    if row is all_:
        return (
            f"On {found.prompts} prompts, no smaller number of {noun} keeps {found.keep:.0%} and saves "
            f"time: the fast mode should run all {all_.count}."
        )
    kept = f"the same next token at {row.agreement:.0%} of places"
    if row.score is not None and all_.score:
        kept = f"{row.score:.0%} of tasks right (all {noun}: {all_.score:.0%})"
    saved = 1 - row.seconds / all_.seconds
    few = "" if found.places >= ENOUGH_PLACES else ", which is few: more prompts make it surer"
    return (
        f"{row.count} of {all_.count} {noun}: {kept}, {saved:.0%} less time for a token. It rests on "
        f"{found.places:,} token places{few}."
    )


def page(found: GroupsFound, settings: str) -> str:
    """The whole report as HTML. settings: name of the settings file."""
    row, every, noun = found.proposed, found.all, found.units.name
    tiles = [
        (f"{row.count} of {every.count}", f"{noun} proposed for the fast mode"),
        (f"{row.agreement:.0%}", f"the same next token as all {noun}"),
        (f"{1000 * row.seconds:.2f} ms", f"a token; all {noun} {1000 * every.seconds:.2f} ms"),
    ]
    if row.score is not None:
        tiles.append((f"{row.score:.0%}", "of the tasks right"))
    own = {
        "took": f"{found.seconds / 60:.1f} minutes; {found.prompts} prompts, {found.places} tokens, "
        f"{found.tasks} tasks",
        "answers": f"given with all {noun} and without thinking, then read with fewer",
    }
    agreement = {"same next token": (1, [100 * r.agreement for r in found.rows])}
    if every.score is not None:
        agreement["tasks right"] = (3, [100 * (r.score or 0.0) for r in found.rows])
    divergence = {"divergence": (2, [1000 * r.divergence for r in found.rows])}
    return render(
        "groups.html",
        found=found,
        noun=noun,
        headline=headline(found),
        tiles=tiles,
        model=json.dumps(found.model),
        settings=json.dumps(settings, ensure_ascii=False),
        agreement=_lines(found, f"Agreement with all {noun}", "", agreement, " %"),
        divergence=_lines(found, f"Divergence from all {noun}", "nats / 1000", divergence, ""),
        seconds=_seconds(found),
        rows=[
            (
                [
                    str(r.count),
                    f"{r.agreement:.1%}",
                    f"{r.divergence:.3f}",
                    f"{1000 * r.seconds:.2f}",
                    f"{r.seconds / every.seconds:.0%}",
                    "-" if r.score is None else f"{r.score:.1%}",
                ],
                "best" if r is row else "",
            )
            for r in found.rows
        ],
        conditions=conditions(own, found.circumstances),
    )


def _lines(
    found: GroupsFound,
    title: str,
    y_title: str,
    lines: dict[str, tuple[int, list[float]]],
    unit: str,
) -> Plot:
    """Lines against the number of groups or experts: name -> colour and values."""
    most = max(max(values) for _, values in lines.values())
    plot = _axes(found, title, y_title, 100.0 if unit else 1.08 * max(most, 1e-9), unit)
    plot.legend = {name: colour for name, (colour, _) in lines.items()}
    for name, (colour, values) in lines.items():
        points = [
            Point(
                place,
                value,
                f"{row.count} {found.units.name}, {name}: {value:.1f}{unit}",
                hollow=row is not found.proposed,
            )
            for place, (row, value) in enumerate(zip(found.rows, values))
        ]
        plot.series.append(Series(colour, points))
    return plot


def _seconds(found: GroupsFound) -> Plot:
    """Milliseconds a token against the number of groups or experts."""
    values = [1000 * row.seconds for row in found.rows]
    plot = _axes(found, "Time of a token", "ms a token", 1.12 * max(values), "")
    for place, (row, value) in enumerate(zip(found.rows, values)):
        colour, note = int(row is found.proposed), f"{row.count} {found.units.name}: {value:.2f} ms"
        plot.bars.append(Bar(place - 0.3, 0.6, value, colour, note, f"{value:.2f}"))
    return plot


def _axes(found: GroupsFound, title: str, y_title: str, top: float, suffix: str) -> Plot:
    numbers = [row.count for row in found.rows]
    return Plot.columns(
        numbers, title, f"routed {found.units.name} a token", y_title, top, y_suffix=suffix
    )
