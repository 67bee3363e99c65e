"""What the steps of a replica take, and what it holds: a file of plain JSON, planned or measured."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from fastslow.engine.host.files import read_object
from fastslow.engine.params import nearest, shown

MOST_ROWS = 16_384  # of a step; more take as much longer as they are more
MOST_POINTS = 10_000  # of a curve
MOST_MODES = 64
MOST_OTHERS = 64  # replicas beside one on its machine
MOST_STEP = 3600.0  # seconds of a step at a point of a curve
MOST_SECONDS = 1e6  # of a way or a start: more, and nothing would ever be over
MOST_SLOWDOWN = 1e6
MOST_TOKEN = 1.0  # seconds that a token before a row adds to it


@dataclass(frozen=True, slots=True)
class ModeSteps:
    """Steps of one mode.

    Attributes:
        rows: numbers of rows, ascending from 1.
        seconds: of a step with so many rows, each the last token of a request or a drafted one.
        prompt_seconds: of a step with so many rows of a prompt; () = as `seconds`.
        tokens_per_step: that a request gets, where the trace does not say.
        rows_per_step: of a request, its last token and drafted ones, where the trace does not say.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    prompt_seconds: tuple[float, ...] = ()
    tokens_per_step: float = 1.0
    rows_per_step: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= MOST_POINTS or self.rows[0] != 1:
            raise ValueError(f"rows must be 1 to {MOST_POINTS} numbers that ascend from 1")
        if not all(a < b <= MOST_ROWS for a, b in itertools.pairwise(self.rows)):  # nor nan
            raise ValueError(f"rows must be numbers that ascend from 1 to at most {MOST_ROWS}")
        for name in ("seconds", "prompt_seconds"):
            curve = getattr(self, name)
            if (curve or name == "seconds") and len(curve) != len(self.rows):
                raise ValueError(f"{name} has {len(curve)} numbers for {len(self.rows)} rows")
            if any(not 0 < value <= MOST_STEP for value in curve):
                raise ValueError(f"{name} must be numbers above 0, and at most {MOST_STEP:g}")
        for name in ("tokens_per_step", "rows_per_step"):
            if not 1 <= getattr(self, name) <= 1000:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and 1000")


@dataclass(frozen=True, slots=True)
class ReplicaCosts:
    """One replica as a machine.

    Attributes:
        modes: name -> what its steps take.
        pages, page_tokens: of keys and values.
        max_running: most requests in a step.
        prompt_rows: most rows of text in a step.
        context_seconds: more of a step, for each token that a decoding request has before it.
        attention_seconds: more of a step, for each row of a prompt and each token before that.
        first_seconds: from a client to the replica and back: what is no step.
        start_seconds: until a new replica answers.
        slowdown: what a step takes while 1, 2, ... other replicas of the same machine run steps, times what it
            takes alone; with more others as with the last. () = each replica has a machine of its own.
        source: where the figures are from, for people.
    """

    modes: Mapping[str, ModeSteps]
    pages: int
    page_tokens: int = 16
    max_running: int = 64
    prompt_rows: int = 512
    context_seconds: float = 0.0
    attention_seconds: float = 0.0
    first_seconds: float = 0.0
    start_seconds: float = 60.0
    slowdown: tuple[float, ...] = ()
    source: str = ""
    _curves: dict[str, tuple[list[float], list[float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _order: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.modes) <= MOST_MODES:
            raise ValueError(f"modes must be 1 to {MOST_MODES}, not {len(self.modes)}")
        for name in ("pages", "page_tokens", "max_running", "prompt_rows"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a whole number of at least 1, at most 10^9"
                )
        if self.prompt_rows < self.max_running:
            raise ValueError(
                f"prompt_rows={self.prompt_rows} must be at least max_running={self.max_running}: "
                "else not all that run fit into a step"
            )
        for name in ("context_seconds", "attention_seconds"):
            if not 0 <= getattr(self, name) <= MOST_TOKEN:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be between 0 and {MOST_TOKEN:g}"
                )
        check_times(self.first_seconds, self.start_seconds)
        if len(self.slowdown) > MOST_OTHERS or not all(
            1 <= one <= MOST_SLOWDOWN for one in self.slowdown
        ):
            raise ValueError(
                f"slowdown must be at most {MOST_OTHERS} numbers between 1 and {MOST_SLOWDOWN:g}, "
                "one for each number of others"
            )
        for name, cost in self.modes.items():
            decode = _table(cost.rows, cost.seconds)
            prompt = _table(cost.rows, cost.prompt_seconds) if cost.prompt_seconds else decode
            self._curves[name] = decode, prompt
        dearest = sorted(self.modes, key=lambda name: -self._curves[name][0][min(64, MOST_ROWS)])
        self._order.update({name: place for place, name in enumerate(dearest)})

    def mode(self, name: str) -> ModeSteps:
        """The costs of a mode.

        Raises:
            ValueError: it has none.
        """
        if name not in self.modes:
            raise ValueError(f"mode {shown(name)} has no step costs{nearest(name, self.modes)}")
        return self.modes[name]

    def step(self, decode: Mapping[str, float], prompt: Mapping[str, float]) -> float:
        """Seconds of a step with so many rows of each mode, without what depends on their context.

        Rows of the dearest mode take what they take alone; each further kind takes what so many more rows
        add on its own curve. So a step of one kind is exact, and one of several lies between the curves.
        """
        total, below = 0.0, 0.0
        for rows, prompts in ((decode, False), (prompt, True)):
            for name in sorted(rows, key=self._order.__getitem__) if len(rows) > 1 else rows:
                curve = self._curves[name][prompts]
                above = below + rows[name]
                total += _at(curve, above) - (_at(curve, below) if below else 0.0)
                below = above
        return total

    def slowed(self, others: int) -> float:
        """What a step takes beside so many others of the machine, times what it takes alone."""
        return (
            self.slowdown[min(others, len(self.slowdown)) - 1] if others and self.slowdown else 1.0
        )

    def most_rows(self, modes: Iterable[str], seconds: float) -> int:
        """How many rows of the dearest of these modes a step of so many seconds has; 0: not one."""
        dearest = min(modes, key=self._order.__getitem__)
        return max(0, bisect_right(self._curves[dearest][0], seconds) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return record | {"modes": {name: asdict(cost) for name, cost in self.modes.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReplicaCosts:
        """What `to_dict` gave.

        Raises:
            ValueError: a field is unknown, missing or out of range.
        """
        modes = values.get("modes")
        if not isinstance(modes, Mapping):
            raise ValueError("field 'modes' must be an object of mode -> rows and seconds")
        made = {name: _made(ModeSteps, cost, f"mode {name!r}: ") for name, cost in modes.items()}
        costs: ReplicaCosts = _made(cls, {**values, "modes": made}, "")
        return costs


def check_times(first_seconds: float, start_seconds: float) -> None:
    """ValueError: one of these is out of range."""
    for name, value in (("first_seconds", first_seconds), ("start_seconds", start_seconds)):
        if not 0 <= value <= MOST_SECONDS:
            raise ValueError(f"{name}={value} must be between 0 and {MOST_SECONDS:g}")


def read_costs(path: Path) -> ReplicaCosts:
    """The costs in a file of `write_costs`.

    Raises:
        ValueError: it cannot be read, or does not hold them; one sentence.
    """
    if not path.is_file():
        raise ValueError(f"costs {str(path)!r} cannot be read: there is no such file")
    try:
        return ReplicaCosts.from_dict(read_object(path))
    except ValueError as error:
        raise ValueError(f"costs {str(path)!r}: {error}") from None


def write_costs(path: Path, costs: ReplicaCosts) -> None:
    """Write the costs as JSON."""
    path.write_text(json.dumps(costs.to_dict(), indent=1) + "\n", "utf-8")


def _made(kind: Any, values: object, where: str) -> Any:
    """A dataclass of JSON values."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}{shown(values)} must be an object")
    known = {f.name: f for f in fields(kind) if f.init}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}field {shown(name)} is unknown{nearest(str(name), known)}")
    given: dict[str, Any] = {}
    for name, value in values.items():
        usual = known[name].type
        if usual.startswith("tuple"):
            if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
                raise ValueError(f"{where}{name} must be a list of numbers")
            given[name] = tuple(value)
        elif usual in ("int", "float"):
            if not _is_number(value) or (usual == "int" and not isinstance(value, int)):
                kind_of = "a whole number" if usual == "int" else "a number"
                raise ValueError(f"{where}{name}={shown(value)} must be {kind_of}")
            given[name] = value
        elif usual == "str" and not isinstance(value, str):
            raise ValueError(f"{where}{name}={shown(value)} must be a text")
        else:
            given[name] = value
    try:
        return kind(**given)
    except TypeError:
        wanted = [n for n, f in known.items() if n not in values and _needed(f)]
        raise ValueError(f"{where}field {wanted[0]!r} is missing") from None
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _needed(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(rows: tuple[int, ...], seconds: tuple[float, ...]) -> list[float]:
    """Seconds of 0, 1, 2, ... rows. Beyond the last point a row adds what it added before that."""
    # fewer rows never take longer than more: such a measurement was disturbed
    curve = np.minimum.accumulate(np.array(seconds, dtype=np.float64)[::-1])[::-1]
    at = np.arange(MOST_ROWS + 2)
    table = np.interp(at, rows, curve)
    last = rows[-1]
    slope = curve[-1] / last
    if len(rows) > 1:
        slope = (curve[-1] - curve[-2]) / (last - rows[-2])
    table = np.where(at > last, curve[-1] + slope * (at - last), table)
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
