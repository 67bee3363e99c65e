"""The pictures of the report. Each is HTML, or "" where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from fastslow.engine.params import Speculation
from fastslow.tools.tune.candidates import PLAIN, family, is_plain, label, length_of
from fastslow.tools.tune.html import Plot, Point, Series, legend
from fastslow.tools.tune.sample import (
    Cell,
    Samples,
    acceptance,
    rate,
    ratio,
    rows_per_step,
    seconds_per_step,
)
from fastslow.tools.tune.tune import TuneResult

COLOURS = 6  # besides plain's, which is 0; then they come again


class Palette:
    """A colour for each drafter, the same in all pictures; plain decoding has 0."""

    def __init__(self) -> None:
        self._numbers = {family(PLAIN): 0}

    def of(self, name: str) -> int:
        """The number of a drafter's colour."""
        return self._numbers.setdefault(name, (len(self._numbers) - 1) % COLOURS + 1)


def length_chart(found: TuneResult, palette: Palette) -> str:
    """Tokens a second against length, a line a drafter, and the line where it breaks even."""
    drafted = [s for s in found.measured if not is_plain(s)]
    if not drafted:
        return ""
    lengths = sorted({s.nodes for s in drafted}, key=_last_if_none)
    places = {length: float(i) for i, length in enumerate(lengths)}
    names = {s.nodes: length_of(s) for s in drafted}
    top = max(found.plain_rate, *(found.rate(s) for s in drafted))
    plot = Plot(
        title="Tokens a second against the length of drafts",
        x_title="tokens drafted per step",
        y_title="tokens/s",
        x_range=(-0.5, len(lengths) - 0.5),
        y_top=top * 1.08,
        x_labels=[(place, names[length]) for length, place in places.items()],
    )
    plot.level(found.plain_rate, "plain: break-even")
    families = _families(drafted)
    for name, settings in families.items():
        settings.sort(key=lambda s: places[s.nodes])
        points = [
            Point(
                places[s.nodes],
                found.rate(s),
                f"{label(s)}: {found.rate(s):.1f} tokens/s, {found.ratio(s):.2f} x plain, "
                f"{len(found.samples[s])} runs",
                hollow=s not in found.finalists,
            )
            for s in settings
        ]
        fixed = [p for p, s in zip(points, settings) if s.nodes is not None]
        free = [p for p, s in zip(points, settings) if s.nodes is None]
        for part in (fixed, free):
            if part:
                plot.draw(Series(name, palette.of(name), part))
    return plot.render() + legend((name, palette.of(name)) for name in families)


def acceptance_chart(found: TuneResult, palette: Palette) -> str:
    """The share of drafts accepted up to each position, for the longest drafts of each drafter."""
    series = []
    for name, settings in _families(s for s in found.measured if not is_plain(s)).items():
        longest = max(settings, key=lambda s: len(acceptance(found.samples[s])))
        shares = acceptance(found.samples[longest])
        points = [
            Point(i + 1, 100 * share, f"{label(longest)}: {share:.0%} accepted up to {i + 1}")
            for i, share in enumerate(shares)
        ]
        if points:
            series.append(Series(label(longest), palette.of(name), points))
    if not series:
        return ""
    deepest = max(len(s.points) for s in series)
    plot = Plot(
        title="Acceptance by position",
        x_title="position in the draft",
        y_title="accepted",
        x_range=(0.5, deepest + 0.5),
        y_top=100,
        x_labels=[(i, str(i)) for i in range(1, deepest + 1, 1 + deepest // 16)],
        y_suffix=" %",
    )
    for one in series:
        plot.draw(one)
    return plot.render() + legend((s.name, s.colour) for s in series)


def cost_chart(found: TuneResult, palette: Palette) -> str:
    """Milliseconds a step against its rows: plain batches, and what drafts added."""
    plain = [
        (rows_per_step(samples), seconds_per_step(samples), f"plain, batch {cell.batch}")
        for cell, samples in found.sizes.items()
        if is_plain(cell.setting) and rows_per_step(samples)
    ]
    groups = {"plain": plain or [_cost(found, PLAIN)]}
    for name, settings in _families(s for s in found.measured if not is_plain(s)).items():
        groups[name] = [_cost(found, s) for s in settings]
    groups = {
        name: sorted(point for point in points if point[0]) for name, points in groups.items()
    }
    every = [point for points in groups.values() for point in points]
    if not every:
        return ""
    widest = max(rows for rows, _, _ in every)
    step = 1 + int(widest) // 16
    plot = Plot(
        title="Time of a step against its rows",
        x_title="rows of a step (requests and drafted tokens, mean)",
        y_title="ms per step",
        x_range=(0, widest * 1.05),
        y_top=1050 * max(seconds for _, seconds, _ in every),
        x_labels=[(i, str(i)) for i in range(0, int(widest * 1.05) + 1, step)],
    )
    for name, points in groups.items():
        drawn = [
            Point(rows, 1000 * s, f"{words}: {rows:.1f} rows, {1000 * s:.1f} ms")
            for rows, s, words in points
        ]
        plot.draw(Series(name, palette.of(name), drawn, joined=name == "plain"))
    return plot.render() + legend((name, palette.of(name)) for name in groups)


def batch_chart(found: TuneResult, palette: Palette) -> str:
    """Tokens a second at each batch size, plain and with what was found."""
    cells = [c for c, samples in found.sizes.items() if isfinite(ratio(samples, _plain(found, c)))]
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    sizes = sorted({cell.batch for cell in cells})
    if not cells:
        return ""
    rates = {cell: _rate(found, cell) for cell in cells}
    plot = Plot(
        title="Tokens a second against the batch size",
        x_title="requests at a time",
        y_title="tokens/s, all together",
        x_range=(-0.5, len(sizes) - 0.5),
        y_top=1.12 * max(rates.values()),
        x_labels=[(i, str(size)) for i, size in enumerate(sizes)],
    )
    width = 0.7 / len(settings)
    for cell in cells:
        value = rates[cell]
        left = sizes.index(cell.batch) - 0.35 + settings.index(cell.setting) * width
        note = f"{label(cell.setting)}, batch {cell.batch}: {value:.1f} tokens/s"
        plot.bar(left, width * 0.94, value, palette.of(family(cell.setting)), note)
        if not is_plain(cell.setting):
            times = ratio(found.sizes[cell], _plain(found, cell))
            plot.note(left + width * 0.47, value, f"{times:.2f} x")
    return plot.render() + legend((label(s), palette.of(family(s))) for s in settings)


def _plain(found: TuneResult, cell: Cell) -> Samples:
    return found.sizes[cell._replace(setting=PLAIN)]


def _rate(found: TuneResult, cell: Cell) -> float:
    """As `Found.rate`: runs side by side say more than runs at different times."""
    plain = _plain(found, cell)
    return rate(plain) * (1.0 if is_plain(cell.setting) else ratio(found.sizes[cell], plain))


def _cost(found: TuneResult, setting: Speculation) -> tuple[float, float, str]:
    samples = found.samples[setting]
    return rows_per_step(samples), seconds_per_step(samples), label(setting)


def _families(settings: Iterable[Speculation]) -> dict[str, list[Speculation]]:
    families: dict[str, list[Speculation]] = {}
    for setting in settings:
        families.setdefault(family(setting), []).append(setting)
    return families


def _last_if_none(length: int | None) -> tuple[bool, int]:
    return length is None, length or 0
