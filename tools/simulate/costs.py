"""Costs of a replica: the seconds of its steps, and what it holds. A file of plain JSON, planned or measured."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from fastslow.engine.host.files import read_object
from fastslow.engine.params import Params, nearest, shown
from fastslow.tools.simulate.trace import PerStep

MOST_ROWS = 16_384  # of a step; more take as much longer as they are more

Count = Annotated[int, Field(ge=1, le=10**9)]
PerToken = Annotated[float, Field(ge=0, le=1)]  # seconds
Curve = tuple[Annotated[float, Field(gt=0, le=3600)], ...]


class ModeSteps(Params):
    """Steps of one mode."""

    rows: Annotated[tuple[int, ...], Field(min_length=1, max_length=10_000)]  # ascending from 1
    seconds: Curve  # of a step with as many rows, each the last token of a request or a drafted one
    prompt_seconds: Curve = ()  # of a step with as many rows of a prompt; () = as `seconds`
    # of a request, where the trace does not say: tokens that it gets; its last token and drafted ones
    tokens_per_step: PerStep = 1.0
    rows_per_step: PerStep = 1.0

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        pairs = itertools.pairwise(self.rows)
        if self.rows[0] != 1 or not all(a < b <= MOST_ROWS for a, b in pairs):
            raise ValueError(f"rows must ascend from 1 to at most {MOST_ROWS}")
        for name, curve in (("seconds", self.seconds), ("prompt_seconds", self.prompt_seconds)):
            if (curve or name == "seconds") and len(curve) != len(self.rows):
                raise ValueError(f"{name} has {len(curve)} numbers for {len(self.rows)} rows")
        return self


class ReplicaCosts(Params):
    """Costs of one replica: its steps by mode, and its pages."""

    modes: Annotated[dict[str, ModeSteps], Field(min_length=1, max_length=64)]
    pages: Count  # of keys and values
    page_tokens: Annotated[int, Field(ge=1, le=65_536)] = 16
    max_running: Count = 64  # most requests in a step
    prompt_rows: Count = 512  # most rows of text in a step
    context_seconds: PerToken = 0.0  # more of a step, for each token before a decoding request
    attention_seconds: PerToken = 0.0  # likewise for each row of a prompt and each token before it
    # from a client to the replica and back: what is no step
    first_seconds: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    source: str = ""  # where the figures are from, for people
    # by mode, the dearest first: seconds of 0, 1, 2, ... rows that decode, and of rows of prompts
    _curves: dict[str, tuple[list[float], list[float]]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.prompt_rows < self.max_running:
            raise ValueError(
                f"prompt_rows={self.prompt_rows} must be at least max_running={self.max_running}: "
                "all that run have to fit into a step"
            )
        return self

    def model_post_init(self, _context: object) -> None:
        curves = {}
        for name, cost in self.modes.items():
            decode = curve_of(cost.rows, cost.seconds)
            prompt = curve_of(cost.rows, cost.prompt_seconds) if cost.prompt_seconds else decode
            curves[name] = decode, prompt
        self._curves.update(sorted(curves.items(), key=lambda item: -item[1][0][64]))

    def mode(self, name: str) -> ModeSteps:
        """The costs of a mode; ValueError where it has none."""
        if name not in self.modes:
            raise ValueError(f"mode {shown(name)} has no step costs{nearest(name, self.modes)}")
        return self.modes[name]

    def step(self, decode: Mapping[str, float], prompt: Mapping[str, float]) -> float:
        """Seconds of a step with rows by mode, without what depends on their context. Rows of the dearest mode take
        what they take alone; each further kind takes what as many more rows add on its own curve. So a step of one
        kind is exact, and one of several lies between the curves."""
        total, below = 0.0, 0.0
        for place, rows in enumerate((decode, prompt)):
            for name, curves in self._curves.items():
                if more := rows.get(name, 0.0):
                    curve = curves[place]
                    total += _at(curve, below + more) - (_at(curve, below) if below else 0.0)
                    below += more
        return total

    def most_rows(self, modes: Collection[str], seconds: float) -> int:
        """Return how many rows of the dearest of these modes fit into a step of some seconds."""
        dearest = next(name for name in self._curves if name in modes)
        return max(0, bisect_right(self._curves[dearest][0], seconds) - 1)


def read_costs(path: Path) -> ReplicaCosts:
    """The costs in a file of `write_costs`. ValueError: it cannot be read, or does not hold them; one sentence."""
    if not path.is_file():
        raise ValueError(f"costs {str(path)!r} cannot be read: there is no such file")
    try:
        return ReplicaCosts(**read_object(path))
    except ValueError as error:
        raise ValueError(f"costs {str(path)!r}: {error}") from None


def write_costs(path: Path, costs: ReplicaCosts) -> None:
    """Write the costs as JSON."""
    path.write_text(json.dumps(costs.model_dump(), indent=1) + "\n", "utf-8")


def curve_of(rows: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Seconds of 0, 1, 2, ... rows. Beyond the last point a row adds what it added before that."""
    # fewer rows never take longer than more: such a measurement was disturbed
    curve = np.minimum.accumulate(np.array(seconds, dtype=np.float64)[::-1])[::-1]
    at, last = np.arange(MOST_ROWS + 2), rows[-1]
    slope = (curve[-1] - curve[-2]) / (last - rows[-2]) if len(rows) > 1 else curve[-1]
    table: Any = np.where(at > last, curve[-1] + slope * (at - last), np.interp(at, rows, curve))
    table[0] = 0.0
    found: list[float] = table.tolist()
    return found


def _at(curve: list[float], rows: float) -> float:
    """Seconds of a number of rows that need not be whole; below one row it is one row's share."""
    if rows >= MOST_ROWS:
        return curve[MOST_ROWS] * rows / MOST_ROWS
    place = int(rows)
    below = curve[place]
    return below + (curve[place + 1] - below) * (rows - place)
