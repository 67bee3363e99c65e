"""Pictures of what thinking brings and costs, drawn from the files of `benchmarks/thinking.py`.

    python benchmarks/thinking_pictures.py abacus.json atlas.json --out docs/guide

Each file is a panel of each picture: auto.svg (right answers by tokens of the ways to choose a mode), budgets.svg (the
same of thoughts that are ended early), groups.svg (right answers by routed groups). They have both themes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

Point = tuple[float, float]  # of the axes: tokens or groups, and accuracy
Box = tuple[float, float, float, float]  # left, top, right, bottom
WIDTH, HEIGHT = 440, 330  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 62, 44  # around its plot
LETTER, LINE = 6.4, 14  # of a label
COLOURS = {"light": "#fff #1f2328 #59636e #d9dee4 #0969da #bc4c00 #818b98 #1a7f37"}
COLOURS |= {"dark": "#0d1117 #f0f6fc #9198a1 #30363d #58a6ff #f0883e #7d8590 #56d364"}
BLUE, ORANGE, GREY, GREEN = "abcd"
TITLES = {
    "auto.svg": "Right answers by tokens, for each way to choose a mode",
    "budgets.svg": "Right answers by tokens, of thoughts that are ended early",
    "groups.svg": "Right answers by routed groups",
}
EARLY = {"hard budget": ("budget ", ORANGE, "none"), "soft budget": ("soft budget ", BLUE, "4 6")}
EARLY |= {"early stop": ("early stop", GREEN, "none")}


class Line(NamedTuple):
    """A curve."""

    name: str
    colour: str
    points: Sequence[Point]
    dashes: str = "none"
    dots: bool = False


class Panel(NamedTuple):
    """A plot. across: what its axis counts. labelled: single points, with their names and colours."""

    across: str
    lines: Sequence[Line]
    labelled: Sequence[tuple[str, str, Point]] = ()


def style() -> str:
    """Colours of both themes."""
    own = "text{{fill:{1};stroke:{0}}}.dim{{fill:{2}}}.bg{{fill:{0}}}.grid{{stroke:{3}}}"
    own += "".join(
        f".l{name}{{{{stroke:{{{n}}}}}}}.f{name}{{{{fill:{{{n}}}}}}}"
        for n, name in enumerate("abcd", 4)
    )
    light, dark = (own.format(*colours.split()) for colours in COLOURS.values())
    base = "text{font:12px system-ui,sans-serif;stroke-width:3px;paint-order:stroke}.title{font-weight:600;font-size:14px}"
    base += "polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
    return f"<style>{base}{light}@media(prefers-color-scheme:dark){{{dark}}}</style>"


def drawn(title: str, panel: Panel, left: int) -> Iterator[str]:
    """The parts of a plot that begins there."""
    every = [p for line in panel.lines for p in line.points] + [p for *_, p in panel.labelled]
    most, low = max(x for x, _ in every) * 1.04, min(y for _, y in every)
    step = 10 if low >= 0.4 else 20
    least = int(100 * low // step) * step / 100
    base, wide = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT

    def at(point: Point) -> Point:
        x, y = left + LEFT + point[0] / most * wide, (point[1] - least) / (1 - least)
        return round(x, 1), round(base - y * (base - TOP), 1)

    def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
        return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'

    yield text(left + 12, 22, title, "title")
    for tick in range(round(100 * least), 101, step):
        x, y = at((0, tick / 100))
        yield f'<line class="grid" x1="{x}" x2="{x + wide}" y1="{y}" y2="{y}"/>'
        yield text(x - 8, y + 4, f"{tick}%", "dim", "end")
    size = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if most / n < 9)
    for mark in range(0, int(most) + 1, size):
        yield text(at((mark, least))[0], base + 18, str(mark), "dim", "middle")
    yield text(left + LEFT + wide / 2, base + 36, panel.across, "dim", "middle")
    x = left + 12.0
    for line in panel.lines:
        begin = f'<polyline class="l{line.colour}" stroke-dasharray="{line.dashes}" points='
        yield f'{begin}"{x},40 {x + 20},40"/>{text(x + 26, 44, line.name)}'
        x += 44 + LETTER * len(line.name)
        points = [at(point) for point in line.points]
        yield f'{begin}"{" ".join(f"{px},{py}" for px, py in points)}"/>'
        for px, py in points if line.dots else ():
            yield f'<circle class="f{line.colour}" cx="{px}" cy="{py}" r="3"/>'
    full = [box(x - 5, y - 5, 10, 10) for x, y in (at(point) for *_, point in panel.labelled)]
    for name, colour, point in panel.labelled:
        x, y = at(point)
        full.append(beside(name, (x, y), full, (left + LEFT, left + WIDTH)))
        yield f'<circle class="f{colour}" cx="{x}" cy="{y}" r="4.5"/>'
        yield text(full[-1][0], full[-1][3] - 3, name)


def box(x: float, y: float, wide: float, high: float) -> Box:
    return x, y, x + wide, y + high


def beside(name: str, point: Point, full: Sequence[Box], edges: Point) -> Box:
    """Find a place for a point's name: the first around it where no other stands, else at its right."""
    (x, y), wide = point, LETTER * len(name)
    rows = [y + lines * LINE - LINE / 2 for lines in (0, 1, -1, 1.8, -1.8, 2.6, -2.6, 3.4)]
    sides = x + 9, x - 9 - wide, x - wide / 2
    for place in (box(side, row, wide, LINE) for row in rows for side in sides):
        over = (
            place[0] < f[2] and f[0] < place[2] and place[1] < f[3] and f[1] < place[3]
            for f in full
        )
        if edges[0] <= place[0] and place[2] <= edges[1] and not any(over):
            return place
    return box(x + 9, rows[0], wide, LINE)


def panels(run: dict[str, Any]) -> dict[str, Panel]:
    """By the pictures that it is a part of; a run that did not measure it has none."""
    ways = {way: (one["tokens"], one["accuracy"]) for way, one in run["figures"].items()}
    curves = {name: sorted(map(tuple, each)) for name, each in (run.get("curves") or {}).items()}
    made = {}
    if {"fast", "deep", "auto"} <= {*ways}:
        kinds = ("by hand", ORANGE, "none"), ("learned", BLUE, "none"), ("oracle", GREY, "7 4")
        lines = [Line(name, c, curves[name], dashes) for name, c, dashes in kinds if name in curves]
        lines.insert(0, Line("a random mix", GREY, [ways["fast"], ways["deep"]], "2 4"))
        named = {"fast": GREY, "deep": GREY, "auto": BLUE, "auto by hand": ORANGE, "brief": GREY}
        points = [(name, c, ways[name]) for name, c in named.items() if name in ways]
        made["auto.svg"] = Panel("tokens of an answer", lines, points)
    lines = []
    for name, (start, colour, dashes) in EARLY.items():
        some = sorted(point for way, point in ways.items() if way.startswith(start))
        lines += [Line(name, colour, some, dashes, True)] if some else []
    if lines:
        points = [(name, GREY, ways[name]) for name in ("fast", "deep") if name in ways]
        made["budgets.svg"] = Panel("tokens of an answer", lines, points)
    lines = []
    for name, colour, end in (("with a thought", BLUE, "on"), ("without", ORANGE, "off")):
        each = {way: y for way, (_, y) in ways.items() if way.endswith(f"groups, thinking {end}")}
        some = sorted((float(way.split()[0]), y) for way, y in each.items())
        lines += [Line(name, colour, some, dots=True)] if some else []
    if lines:
        made["groups.svg"] = Panel("routed groups", lines)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="FILE.json", help="of thinking.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pictures")
    args = parser.parse_args()
    runs = [json.loads(file.read_text("utf-8")) for file in args.runs]
    every = [(f"{run['model']}, {run['tasks']['count']} tasks", panels(run)) for run in runs]
    for name, title in TITLES.items():
        own = [(of, made[name]) for of, made in every if name in made]
        parts = [part for n, (of, made) in enumerate(own) for part in drawn(of, made, n * WIDTH)]
        wide = WIDTH * len(own)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {HEIGHT}" width="{wide}" role="img">'
        head += (
            f'<title>{title}</title>{style()}<rect class="bg" width="{wide}" height="{HEIGHT}"/>'
        )
        if own:
            (args.out / name).write_text("\n".join([head, *parts, "</svg>", ""]), "utf-8")


if __name__ == "__main__":
    main()
