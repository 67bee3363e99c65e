"""Charts of a report: what they show, in its own units. `parts.html` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 50  # of the axes, from the picture's edges


def ticks(top: float) -> list[float]:
    """About 5 round numbers from 0 to at least `top`."""
    if not (top > 0 and math.isfinite(top)):
        return [0.0, 1.0]
    rough = top / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def whole_ticks(last: int, first: int = 0) -> list[tuple[float, str]]:
    """At most some 16 whole numbers from `first` to `last`, as labels of an x axis."""
    return [(i, str(i)) for i in range(first, last + 1, 1 + last // 16)]


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

    colour: int
    points: Sequence[Point]
    joined: bool = True
    dashed: bool = False
    radius: float = 4.5


@dataclass(frozen=True, slots=True)
class Bar:
    """From 0 to `y`, `width` in the units of x, beginning at x; `label` is written above it."""

    x: float
    width: float
    y: float
    colour: int
    note: str
    label: str = ""


@dataclass(slots=True)
class Plot:
    """Axes from 0, upwards and to the right, and what is drawn in them.

    Attributes:
        title: for people who do not see the picture.
        x_title, y_title: what the axes are, with units.
        x_range: least and most of x.
        y_top: most of y.
        x_labels: where x has ticks, and what is written there.
        y_suffix: follows the numbers of the y axis.
        level: a dashed line across at this height, and what is written on it.
        labels: words a little above a place: x, y, words.
        legend: name -> colour.
    """

    title: str
    x_title: str
    y_title: str
    x_range: tuple[float, float]
    y_top: float
    x_labels: Sequence[tuple[float, str]]
    y_suffix: str = ""
    level: tuple[float, str] | None = None
    series: list[Series] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    labels: list[tuple[float, float, str]] = field(default_factory=list)
    legend: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def columns(
        cls,
        names: Sequence[object],
        title: str,
        x_title: str,
        y_title: str,
        top: float,
        **more: Any,
    ) -> Plot:
        """Axes with a column for each name, at x = 0, 1, 2, ...; at most some 16 names are written."""
        labels = [(i, str(names[i])) for i in range(0, len(names), 1 + (len(names) - 1) // 16)]
        return cls(title, x_title, y_title, (-0.5, len(names) - 0.5), top, labels, **more)

    @property
    def marks(self) -> list[float]:
        """The ticks of the y axis."""
        return ticks(self.y_top)

    def x(self, value: float) -> float:
        """The place of a value in the picture, from the left."""
        low, high = self.x_range
        place = LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)
        return round(place, 2)

    def y(self, value: float) -> float:
        """The place of a value in the picture, from the top."""
        return round(HEIGHT - BOTTOM - value / self.marks[-1] * (HEIGHT - TOP - BOTTOM), 2)

    def path(self, series: Series) -> str:
        """The corners of a series' line."""
        return " ".join(f"{self.x(p.x):.1f},{self.y(p.y):.1f}" for p in series.points)
