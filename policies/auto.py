"""Which of two modes a request gets: a weighted sum of features of its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fastslow.engine.params import Mode, Number, Params, nearest, sentence
from fastslow.engine.types import Chooser, ModeChoice, Situation
from fastslow.policies.features import LABELS, features

TELLING = 0.05  # smaller terms are shown as one sum


class Selector(Params):
    """Takes the second mode where the score is above the threshold: score = bias + the sum of
    weight * (feature - mean). `fastslow tune --modes` fits one to graded tasks; the weights of the
    built-in one are set by hand. It is data: nothing in it is run.
    """

    between: tuple[str, str] = Field(
        default=("fast", "deep"), description="the cheaper mode and the better one"
    )
    weights: dict[str, Number] = Field(description="feature -> what one unit of it adds")
    means: dict[str, Number] = Field(default={}, description="feature -> its usual value")
    bias: Number = Field(default=0.0, description="the score of a usual prompt")
    threshold: Number = Field(default=0.0, description="the second mode's scores lie above")

    @field_validator("weights", "means")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in LABELS:
                raise ValueError(f"feature {name!r} is unknown{nearest(name, LABELS)}")
        return value

    def score(self, seen: Mapping[str, float]) -> float:
        """The score of these features; where it was fitted, a logit."""
        return self.bias + sum(part for _, part in self._parts(seen))

    def __call__(self, situation: Situation) -> ModeChoice:
        seen = features(situation)
        score = self.score(seen)
        deep = score > self.threshold
        mode = self.between[deep]
        sign = ">" if deep else "<="
        return ModeChoice(
            mode, f"{mode}: {self._sum(seen)} = {score:.1f} {sign} {self.threshold:.3g}"
        )

    def _parts(self, seen: Mapping[str, float]) -> list[tuple[str, float]]:
        return [
            (name, weight * (seen[name] - self.means.get(name, 0.0)))
            for name, weight in self.weights.items()
        ]

    def _sum(self, seen: Mapping[str, float]) -> str:
        parts = sorted(self._parts(seen), key=lambda part: -abs(part[1]))
        told = [(LABELS[name], part) for name, part in parts if abs(part) >= TELLING]
        rest = self.score(seen) - self.bias - sum(part for _, part in told)
        told.append(("usual", self.bias))
        if abs(rest) >= TELLING:
            told.append(("rest", rest))
        return ", ".join(f"{name} {part:+.1f}" for name, part in told)


BUILT_IN = Selector(
    weights={
        "length": 0.1,
        "code": 0.6,
        "maths": 0.6,
        "products": 0.2,
        "numbers": 0.35,
        "digits": 0.1,
        "question": -0.6,
        "reasons": 1.0,
        "history": -0.1,
        "urgency": -0.5,
        "load": -1.0,
    },
    bias=-1.0,
)


def read_selector(path: str | Path) -> Selector:
    """The selector in a settings file of `fastslow tune --modes`.

    Raises:
        ValueError: one sentence with the file and what is wrong with it.
    """
    named = f"settings file {str(path)!r}"
    record = _record(Path(path), named)
    if record.get("auto") is None:
        raise ValueError(
            f"{named}: it has no selector under 'auto'; `fastslow tune --modes` writes one"
        )
    return _selector(record["auto"], named)


def checkpoint_selector(folder: Path) -> Selector:
    """The selector that a checkpoint brings, under "auto" in its `fastslow.json`; else the built-in one.

    Raises:
        ValueError: one sentence with the file and what is wrong with it.
    """
    path = folder / "fastslow.json"
    if not path.is_file():
        return BUILT_IN
    record = _record(path, str(path))
    return BUILT_IN if record.get("auto") is None else _selector(record["auto"], str(path))


def _record(path: Path, named: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{named} cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{named} is no JSON: {error}") from error
    return record if isinstance(record, dict) else {}


def _selector(given: Any, named: str) -> Selector:
    try:
        return Selector.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{named}: auto {sentence(error, Selector.model_fields)}") from error


def choose(chooser: Chooser, situation: Situation, presets: Mapping[str, Mode]) -> ModeChoice:
    """The preset that a chooser takes, checked, with a line that says why.

    Raises:
        ValueError: it names no preset, or one that would choose again.
    """
    said = chooser(situation)
    if isinstance(said, str):
        said = ModeChoice(said, f"{said}: {getattr(chooser, '__name__', type(chooser).__name__)}")
    named = said[0] if isinstance(said, tuple) and len(said) == 2 else said
    known = [name for name, mode in presets.items() if not mode.auto]
    if named not in known:
        raise ValueError(f"auto chose {named!r}, which is no preset{nearest(str(named), known)}")
    choice = ModeChoice(*said)
    if not isinstance(choice.why, str | None):
        raise ValueError(f"auto chose {named!r} because of {choice.why!r}, which is no text")
    return choice
