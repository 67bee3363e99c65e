"""What all reports are made of: the parts of a page, and small charts as SVG text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 50  # of the plot, from the picture's edges


def tag(name: str, inner: str = "", **attributes: object) -> str:
    """An element. `inner` is markup; attribute values are escaped; a_b is written a-b, a_ is a."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{inner}</{name}>"


def text(words: str, x: float, y: float, anchor: str = "middle", class_: str = "") -> str:
    """A line of text, escaped."""
    return tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=class_)


def ticks(top: float, count: int = 5) -> list[float]:
    """About `count` round numbers from 0 to at least `top`."""
    if not (top > 0 and math.isfinite(top)):
        return [0.0, 1.0]
    rough = top / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a chart; `note` is shown when the pointer rests on it."""

    x: float
    y: float
    note: str
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour, joined by a line or not; a dashed one is a line alone."""

    name: str
    colour: int
    points: Sequence[Point]
    joined: bool = True
    dashed: bool = False
    small: bool = False


@dataclass(slots=True)
class Plot:
    """Axes from 0, upwards and to the right, and what is drawn in them.

    Args:
        title: for people who do not see the picture.
        x_title, y_title: what the axes are, with units.
        x_range: least and most of x.
        y_top: most of y.
        x_labels: where x has ticks, and what stands there.
        y_suffix: behind numbers at the y axis.
    """

    title: str
    x_title: str
    y_title: str
    x_range: tuple[float, float]
    y_top: float
    x_labels: Sequence[tuple[float, str]]
    y_suffix: str = ""
    _parts: list[str] = field(init=False, default_factory=list)
    _over: list[str] = field(init=False, default_factory=list)  # drawn last
    _scale: float = field(init=False)

    def __post_init__(self) -> None:
        marks = ticks(self.y_top)
        self._scale = marks[-1]
        for mark in marks:
            y = self.y(mark)
            self._line(LEFT, y, WIDTH - RIGHT, y, "grid")
            self._parts.append(text(f"{mark:g}{self.y_suffix}", LEFT - 8, y + 4, "end"))
        for x, words in self.x_labels:
            self._parts.append(text(words, self.x(x), HEIGHT - BOTTOM + 20))
        middle = (LEFT + WIDTH - RIGHT) / 2
        self._parts.append(text(self.x_title, middle, HEIGHT - 8, class_="axis"))
        turned = f"translate(14 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)"
        words = escape(self.y_title)
        self._parts.append(
            tag("text", words, transform=turned, text_anchor="middle", class_="axis")
        )

    def x(self, value: float) -> float:
        """Where a value lies, in units of the picture."""
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Where a value lies, in units of the picture, downwards."""
        return HEIGHT - BOTTOM - value / self._scale * (HEIGHT - TOP - BOTTOM)

    def level(self, value: float, words: str) -> None:
        """A dashed line across, with words on it."""
        y = self.y(value)
        self._line(LEFT, y, WIDTH - RIGHT, y, "level")
        self._over.append(text(words, WIDTH - RIGHT - 4, y - 6, "end", "level-name"))

    def draw(self, series: Series) -> None:
        """A line with dots, or the dots alone."""
        places = [(self.x(p.x), self.y(p.y)) for p in series.points]
        line = "line dashed" if series.dashed else "line"
        marks = [] if len(places) < 2 or not series.joined else [_path(places, line)]
        for point, (x, y) in zip(series.points, places):
            note = tag("title", escape(point.note))
            kind = "dot hollow" if point.hollow else "dot"
            size = 2.6 if series.small else 4.5
            marks.append(tag("circle", note, cx=x, cy=y, r=size, class_=kind))
        self._parts.append(tag("g", "".join(marks), class_=f"c{series.colour}"))

    def bar(self, x: float, width: float, value: float, colour: int, note: str) -> None:
        """A bar from 0, `width` in the units of x, that begins at x."""
        left, top = self.x(x), self.y(value)
        right, ground = self.x(x + width), self.y(0)
        box = tag(
            "rect",
            tag("title", escape(note)),
            x=left,
            y=top,
            width=right - left,
            height=max(0.0, ground - top),
            rx=3,
            class_="bar",
        )
        self._parts.append(tag("g", box, class_=f"c{colour}"))

    def note(self, x: float, y: float, words: str) -> None:
        """Words a little above a place."""
        self._parts.append(text(words, self.x(x), self.y(y) - 7, class_="strong"))

    def render(self) -> str:
        """The picture."""
        return tag(
            "svg",
            tag("title", escape(self.title)) + "".join(self._parts + self._over),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
        )

    def _line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind))


def _path(places: Iterable[tuple[float, float]], kind: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return tag("polyline", points=joined, class_=kind)


def legend(names: Iterable[tuple[str, int]]) -> str:
    """HTML: which colour is whose."""
    keys = (
        tag("span", tag("i", class_="swatch") + escape(name), class_=f"key c{colour}")
        for name, colour in names
    )
    return tag("p", "".join(keys), class_="legend")


TEMPLATE = Path(__file__).with_name("report.html")


def document(title: str, body: Iterable[str]) -> str:
    """HTML without scripts and without anything to load, in light and dark."""
    html = Template(TEMPLATE.read_text("utf-8"))
    return html.substitute(title=escape(title), body="\n".join(body))


def head(over: str, headline: str, warnings: Iterable[str] = ()) -> str:
    """The line above, the headline, and what a reader should be warned of."""
    said = "".join(tag("p", escape(words), class_="warn") for words in warnings)
    return tag("p", escape(over), class_="over") + tag("h1", escape(headline)) + said


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with what it is."""
    inner = "".join(
        tag("div", tag("b", escape(value)) + tag("span", escape(words)), class_="tile")
        for value, words in pairs
    )
    return tag("div", inner, class_="tiles")


def use(code: str) -> str:
    """Lines to copy."""
    return tag("section", tag("h2", "Use it") + tag("pre", tag("code", escape(code))))


def section(title: str, hint: str, content: str) -> str:
    """A part of the report; without content it says that nothing was measured."""
    inner = tag("div", content, class_="wide") if content else tag("p", "Not measured.")
    return tag("section", tag("h2", title) + tag("p", hint, class_="hint") + inner)


def table(titles: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    """Rows of text, each with a class of its line, such as "best"."""
    lines = [tag("tr", "".join(tag("th", escape(title)) for title in titles))]
    for cells, kind in rows:
        lines.append(tag("tr", "".join(tag("td", escape(c)) for c in cells), class_=kind))
    return tag("table", "".join(lines))


def facts(own: Mapping[str, str], circumstances: Mapping[str, Any]) -> str:
    """How it was measured: when, what a report says of itself, and on what machine."""
    about = circumstances
    every = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **own,
        "machine": ", ".join(f"{key} {value}" for key, value in about["machine"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in about["versions"].items()),
        "command": " ".join(about["command"]),
    }
    rows = (tag("dt", escape(key)) + tag("dd", escape(value)) for key, value in every.items())
    return tag("section", tag("h2", "How this was measured") + tag("dl", "".join(rows)))
