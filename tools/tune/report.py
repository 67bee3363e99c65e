"""The page of `fastslow tune` for a browser: without scripts, and without anything to download."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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


class ChartLine(NamedTuple):
    """Points of one name, from left to right, joined by a line."""

    name: str
    points: list[tuple[int, float]]


@dataclass(slots=True)
class Chart:
    """Lines over columns, whose x is 0, 1, 2, ...; `level`: a dashed line, and what is written on it."""

    title: str
    x_title: str
    y_title: str
    lines: list[ChartLine]
    names: list[str]
    level: tuple[float, str]
    marks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        points = [point for line in self.lines for point in line.points]
        self.marks = ticks(max([self.level[0], *(y for _, y in points)]))

    def x(self, value: int) -> float:
        """The place of a column in the picture, from the left."""
        return round(LEFT + (value + 0.5) / max(1, len(self.names)) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """The place of a value in the picture, from the top."""
        return round(HEIGHT - BOTTOM - value / self.marks[-1] * (HEIGHT - TOP - BOTTOM), 2)

    def path(self, line: ChartLine) -> str:
        """The corners of a line."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in line.points)


def page(circumstances: Mapping[str, Any], conditions: Mapping[str, str], **values: Any) -> str:
    """The page that `report.html` makes of the values (subject, headline, warnings, tiles, code, columns, rows,
    chart); text in them is escaped. conditions: how it was measured, besides."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    machine, versions = (
        ", ".join(f"{key} {value}" for key, value in circumstances[name].items())
        for name in ("machine", "versions")
    )
    shown = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **conditions,
        "machine": machine,
        "versions": versions,
        "command": " ".join(circumstances["command"]),
    }
    return environment.get_template("report.html").render(conditions=shown, **values)
