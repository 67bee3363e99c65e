"""The report of `fastslow tune`: which drafter is fastest, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from math import isfinite

from fastslow.engine.host.machine import CONTENDED
from fastslow.engine.params import Speculation
from fastslow.tools.report.page import conditions, render
from fastslow.tools.report.plot import Bar, Plot, Point, Series, whole_ticks
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, family, is_plain, label, length_of
from fastslow.tools.tune.halving import TIE
from fastslow.tools.tune.sample import Cell, Samples
from fastslow.tools.tune.speculation import TuneResult

COLOURS = 6  # besides plain's, which is 0; then they come again
NOISY = 1 / 3  # share of runs beside other work from which on the report warns


class Palette(dict[str, int]):
    """A colour for each drafter, the same in all charts; plain decoding has 0."""

    def __init__(self, found: TuneResult) -> None:
        super().__init__({family(PLAIN): 0})
        for setting in found.samples:
            self[family(setting)]

    def __missing__(self, name: str) -> int:
        self[name] = (len(self) - 1) % COLOURS + 1
        return self[name]

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """Those of some drafters, for a legend."""
        return {name: self[name] for name in names}


def headline(found: TuneResult) -> str:
    """How much faster what was found is than plain decoding, and what it is."""
    if is_plain(found.best):
        tried = len([s for s in found.measured if not is_plain(s)])
        return (
            f"On {found.prompts} prompts, none of {tried} drafting settings is faster than plain "
            f"decoding with {found.plain_rate:.1f} tokens/s."
        )
    name, nodes = family(found.best), found.best.nodes
    action = f"drafting up to {nodes} tokens a step with {name}"
    if nodes is None:
        action = f"drafting with {name}, as far as pays,"
    elif nodes == 1:
        action = f"drafting 1 token a step with {name}"
    return (
        f"On {found.prompts} prompts, {action} is {found.ratio(found.best):.2f} times as fast as "
        f"plain decoding: {found.rate(found.best):.1f} instead of {found.plain_rate:.1f} tokens/s."
    )


def page(found: TuneResult, settings: str = "tuned.json") -> str:
    """The whole report as HTML; parts that were not measured say so.

    Args:
        found: what tuning found.
        settings: name of the settings file, for the lines that tell how to use it.
    """
    palette = Palette(found)
    samples = found.samples[found.best]
    share = stats.accepted_share(samples)
    answers = [
        {
            "question": answer.question,
            "runs": [
                (origin, "".join(token.text for token in tokens))
                for origin, tokens in groupby(answer.tokens, key=lambda token: token.origin)
            ],
            "tokens_per_step": answer.tokens_per_step,
        }
        for answer in found.answers
    ]
    origins = dict.fromkeys(t.origin for a in found.answers for t in a.tokens if t.origin)
    return render(
        "speculation.html",
        found=found,
        headline=headline(found),
        warnings=_warnings(found),
        tiles=[
            (f"{found.ratio(found.best):.2f} x", "plain decoding"),
            (f"{found.rate(found.best):.1f}", f"tokens/s, {label(found.best)}"),
            (f"{stats.tokens_per_step(samples):.2f}", "tokens per step"),
            ("-" if share is None else f"{share:.0%}", "of drafts accepted"),
        ],
        model=json.dumps(found.model),
        settings=json.dumps(settings, ensure_ascii=False),
        rows=_rows(found, palette),
        lengths=length_chart(found, palette),
        acceptance=acceptance_chart(found, palette),
        costs=cost_chart(found, palette),
        batches=batch_chart(found, palette),
        answers=answers,
        drafters=palette.of(origins),
        colours=palette,
        conditions=_conditions(found),
    )


def _warnings(found: TuneResult) -> list[str]:
    warnings = []
    if found.stopped:
        warnings.append("The search was stopped early: this is the best until then.")
    marked, known = _contended(found)
    if marked > NOISY * known:
        warnings.append(
            f"Other programs took much of the machine in {marked} of {known} runs. Where settings "
            "lie close to each other, run this again when it is quiet."
        )
    return warnings


def _contended(found: TuneResult) -> tuple[int, int]:
    """Runs during which others took more than a little of the machine, and runs that know."""
    every = (*found.samples.values(), *found.sizes.values())
    shares = [s.others for samples in every for s in samples if s.others is not None]
    return sum(share > CONTENDED for share in shares), len(shares)


def _conditions(found: TuneResult) -> dict[str, str]:
    marked, known = _contended(found)
    runs = sum(map(len, (*found.samples.values(), *found.sizes.values())))
    own = {
        "took": f"{found.seconds / 60:.1f} minutes, {runs} runs of {found.batch} or more prompts",
        "answers": json.dumps(found.sampling.model_dump(mode="json", exclude_defaults=True)),
        "side by side": "every run beside plain decoding on the same prompts, in changing order",
        "other work": f"took over {CONTENDED:.0%} of the machine in {marked} of {known} runs",
    }
    return conditions(own, found.circumstances)


def _rows(found: TuneResult, palette: Palette) -> list[dict[str, object]]:
    """The rows of the table of all settings, the one to use first."""
    most = max((found.ratio(s) for s in found.measured), default=1.0)
    rows: list[dict[str, object]] = []
    for setting in sorted(found.measured, key=lambda setting: setting != found.best):
        samples, times = found.samples[setting], found.ratio(setting)
        share = stats.accepted_share(samples)
        cells = [
            f"{times:.2f}",
            f"{found.rate(setting):.1f}",
            f"{stats.tokens_per_step(samples):.2f}",
            f"{stats.step_cost(samples, found.samples[PLAIN]):.2f} x",
            "-" if share is None else f"{share:.0%}",
            str(len(samples)),
        ]
        kept = setting in found.finalists or is_plain(setting)
        kind = "best" if setting == found.best else "" if kept else "out"
        colour = palette[family(setting)]
        row = {"name": label(setting), "colour": colour, "share": times / most, "cells": cells}
        rows.append({**row, "kind": kind, "note": _note(found, setting, kind)})
    return rows


def _note(found: TuneResult, setting: Speculation, kind: str) -> str:
    """What a row rests on if it dropped out, and why it is not the best if it looks faster."""
    runs, all_runs = len(found.samples[setting]), len(found.samples[found.best])
    out = f"out after {runs} of {all_runs} runs" if kind == "out" else ""
    if found.ratio(setting) <= found.ratio(found.best):
        return out
    if kind == "out":
        return f"{out}: faster in these, which are too few to tell"
    return f"within {TIE:.0%}: the adaptive length is taken, which holds at other loads, too"


def length_chart(found: TuneResult, palette: Palette) -> Plot | None:
    """Tokens a second against length, a line a drafter, and the line where it breaks even."""
    drafters = _drafters(found)
    drafted = [s for settings in drafters.values() for s in settings]
    if not drafted:
        return None
    names = {s.nodes: length_of(s) for s in drafted}
    lengths = sorted(names, key=lambda nodes: (nodes is None, nodes or 0))
    titles = "Tokens a second against the length of drafts", "tokens drafted per step", "tokens/s"
    plot = Plot.columns(
        [names[length] for length in lengths],
        *titles,
        1.08 * max(found.plain_rate, *(found.rate(s) for s in drafted)),
        level=(found.plain_rate, "plain: break-even"),
        legend=palette.of(drafters),
    )
    for name, settings in drafters.items():
        settings.sort(key=lambda s: lengths.index(s.nodes))
        fixed, adaptive = list[Point](), list[Point]()
        for s in settings:
            value, runs = found.rate(s), len(found.samples[s])
            note = f"{label(s)}: {value:.1f} tokens/s, {found.ratio(s):.2f} x plain, {runs} runs"
            point = Point(lengths.index(s.nodes), value, note, s not in found.finalists)
            (adaptive if s.nodes is None else fixed).append(point)
        plot.series += [Series(palette[name], points) for points in (fixed, adaptive) if points]
    return plot


def acceptance_chart(found: TuneResult, palette: Palette) -> Plot | None:
    """The share of drafts accepted up to each position, for the longest drafts of each drafter."""
    shares_of = {}
    for name, settings in _drafters(found).items():
        longest = max(settings, key=lambda s: len(stats.acceptance(found.samples[s])))
        if shares := stats.acceptance(found.samples[longest]):
            shares_of[label(longest), palette[name]] = shares
    if not shares_of:
        return None
    deepest = max(map(len, shares_of.values()))
    plot = Plot(
        title="Acceptance by position",
        x_title="position in the draft",
        y_title="accepted",
        x_range=(0.5, deepest + 0.5),
        y_top=100,
        x_labels=whole_ticks(deepest, 1),
        y_suffix=" %",
        legend=dict(shares_of.keys()),
    )
    for (name, colour), shares in shares_of.items():
        points = [
            Point(i, 100 * share, f"{name}: {share:.0%} accepted up to {i}")
            for i, share in enumerate(shares, 1)
        ]
        plot.series.append(Series(colour, points))
    return plot


def cost_chart(found: TuneResult, palette: Palette) -> Plot | None:
    """Milliseconds a step against its rows: plain batches, and what drafts added."""
    measured = {
        (family(PLAIN), f"plain, batch {cell.batch}"): samples
        for cell, samples in found.sizes.items()
        if is_plain(cell.setting) and stats.rows_per_step(samples)
    } or {(family(PLAIN), label(PLAIN)): found.samples[PLAIN]}
    for name, settings in _drafters(found).items():
        measured |= {(name, label(s)): found.samples[s] for s in settings}
    points: dict[str, list[Point]] = {name: [] for name, _ in measured}
    for (name, words), samples in measured.items():
        rows, ms = stats.rows_per_step(samples), 1000 * stats.seconds_per_step(samples)
        if rows:
            points[name].append(Point(rows, ms, f"{words}: {rows:.1f} rows, {ms:.1f} ms"))
    every = [point for some in points.values() for point in some]
    if not every:
        return None
    widest = max(point.x for point in every)
    plot = Plot(
        title="Time of a step against its rows",
        x_title="rows of a step (requests and drafted tokens, mean)",
        y_title="ms per step",
        x_range=(0, widest * 1.05),
        y_top=1.05 * max(point.y for point in every),
        x_labels=whole_ticks(int(widest * 1.05)),
        legend=palette.of(points),
    )
    for name, some in points.items():
        ordered = sorted(some, key=lambda point: point.x)
        plot.series.append(Series(palette[name], ordered, joined=name == family(PLAIN)))
    return plot


def batch_chart(found: TuneResult, palette: Palette) -> Plot | None:
    """Tokens a second at each batch size, plain and with what was found."""
    cells = [
        c for c, samples in found.sizes.items() if isfinite(stats.ratio(samples, _plain(found, c)))
    ]
    if not cells:
        return None
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    sizes = sorted({cell.batch for cell in cells})
    width = 0.7 / len(settings)
    bars = []
    for cell in cells:
        # as `TuneResult.rate`: runs side by side say more than runs at different times
        times = stats.ratio(found.sizes[cell], _plain(found, cell))
        value = times * stats.rate(_plain(found, cell))
        left = sizes.index(cell.batch) - 0.35 + settings.index(cell.setting) * width
        note = f"{label(cell.setting)}, batch {cell.batch}: {value:.1f} tokens/s"
        shown = "" if is_plain(cell.setting) else f"{times:.2f} x"
        colour = palette[family(cell.setting)]
        bars.append(Bar(left, width * 0.94, value, colour, note, shown))
    titles = ("Tokens a second against the batch size", "requests at a time")
    top, legend = (
        1.12 * max(bar.y for bar in bars),
        {label(s): palette[family(s)] for s in settings},
    )
    return Plot.columns(sizes, *titles, "tokens/s, of all requests", top, bars=bars, legend=legend)


def _plain(found: TuneResult, cell: Cell) -> Samples:
    return found.sizes[cell._replace(setting=PLAIN)]


def _drafters(found: TuneResult) -> dict[str, list[Speculation]]:
    """The settings that drafted, by drafter."""
    drafters: dict[str, list[Speculation]] = {}
    for setting in found.measured:
        if not is_plain(setting):
            drafters.setdefault(family(setting), []).append(setting)
    return drafters
