"""Which of two modes a request gets: a weighted sum of features of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fastslow.engine.checkpoint.identity import check_model
from fastslow.engine.host.files import read_object
from fastslow.engine.params import Mode, Number, Params, nearest, sentence
from fastslow.policies.features import LABELS, features
from fastslow.policies.mode_router import ModeChoice, ModeRouter, PromptFacts

MIN_SHOWN = 0.05  # smaller terms are shown as one sum


class LinearModeRouter(Params):
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

    def __call__(self, situation: PromptFacts) -> ModeChoice:
        seen = features(situation)
        score = self.score(seen)
        deep = score > self.threshold
        mode, sign = self.between[deep], ">" if deep else "<="
        why = f"{mode}: {self._sum(seen)} = {score:.1f} {sign} {self.threshold:.3g}"
        return ModeChoice(mode, why)

    def _parts(self, seen: Mapping[str, float]) -> list[tuple[str, float]]:
        return [
            (name, weight * (seen[name] - self.means.get(name, 0.0)))
            for name, weight in self.weights.items()
        ]

    def _sum(self, seen: Mapping[str, float]) -> str:
        parts = sorted(self._parts(seen), key=lambda part: -abs(part[1]))
        shown = [(LABELS[name], part) for name, part in parts if abs(part) >= MIN_SHOWN]
        rest = self.score(seen) - self.bias - sum(part for _, part in shown)
        shown.append(("usual", self.bias))
        if abs(rest) >= MIN_SHOWN:
            shown.append(("rest", rest))
        return ", ".join(f"{name} {part:+.1f}" for name, part in shown)


BUILT_IN = LinearModeRouter(
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


def read_selector(path: str | Path, folder: Path | None = None) -> LinearModeRouter:
    """The selector in a settings file of `fastslow tune --modes`.

    Args:
        path: the file.
        folder: of the model that it is for; None = any.

    Raises:
        ValueError: one sentence with the file and what is wrong with it, or that it was found with
            another model.
    """
    named = f"settings file {str(path)!r}"
    if not Path(path).is_file():
        raise ValueError(f"{named} cannot be read: there is no such file")
    record = read_object(Path(path))
    check_model(record, folder, named)
    given = record.get("auto")
    if given is None:
        raise ValueError(
            f"{named} has no selector under 'auto'; `fastslow tune --modes` writes one"
        )
    return _selector(given, named)


def checkpoint_selector(folder: Path) -> LinearModeRouter:
    """The selector that a checkpoint brings, under "auto" in its `fastslow.json`; else the built-in one.

    Raises:
        ValueError: one sentence with the file and what is wrong with it.
    """
    path = folder / "fastslow.json"
    given = read_object(path).get("auto")
    return BUILT_IN if given is None else _selector(given, str(path))


def _selector(given: Any, named: str) -> LinearModeRouter:
    try:
        return LinearModeRouter.model_validate(given)
    except ValidationError as error:
        raise ValueError(
            f"{named}: auto {sentence(error, LinearModeRouter.model_fields)}"
        ) from error


def choose(chooser: ModeRouter, situation: PromptFacts, presets: Mapping[str, Mode]) -> ModeChoice:
    """The preset that a chooser takes, checked, with a line that says why.

    Raises:
        ValueError: it names no preset, or one that would choose again.
    """
    chosen = chooser(situation)
    if isinstance(chosen, str):
        name = getattr(chooser, "__name__", type(chooser).__name__)
        chosen = ModeChoice(chosen, f"{chosen}: {name}")
    named = chosen[0] if isinstance(chosen, tuple) and len(chosen) == 2 else chosen
    known = [name for name, mode in presets.items() if not mode.auto]
    if named not in known:
        raise ValueError(f"auto chose {named!r}, which is no preset{nearest(str(named), known)}")
    choice = ModeChoice(*chosen)
    if not isinstance(choice.why, str | None):
        raise ValueError(f"auto chose {named!r} because of {choice.why!r}, which is no text")
    return choice
