"""The choice between two modes for a request: by a weighted sum of features of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fastslow.engine.checkpoint.identity import check_model
from fastslow.engine.host.files import is_file, read_object
from fastslow.engine.params import Mode, Number, Params, nearest, sentence
from fastslow.policies.features import LABELS, features
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.policies.mode_router import ModeChoice, ModeRouter, PromptFacts

MIN_SHOWN = 0.05  # smaller terms are shown as one sum


class LinearModeRouter(Params):
    """Takes deep instead of fast where the score is above 0: score = bias + the sum of weight * feature. The weights of
    BUILT_IN are set by hand. It is data: nothing in it is run.
    """

    weights: dict[str, Number] = Field(description="feature -> what one unit of it adds")
    bias: Number = Field(default=0.0, description="the score without any feature")

    @field_validator("weights")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in LABELS:
                raise ValueError(f"feature {name!r} is unknown{nearest(name, LABELS)}")
        return value

    def score(self, seen: Mapping[str, float]) -> float:
        """Of these features."""
        return self.bias + sum(part for _, part in self._parts(seen))

    def __call__(self, facts: PromptFacts) -> ModeChoice:
        seen = features(facts)
        score = self.score(seen)
        mode, sign = ("deep", ">") if score > 0 else ("fast", "<=")
        why = f"{mode}: {self._sum(seen)} = {score:.1f} {sign} 0"
        return ModeChoice(mode, why)

    def _parts(self, seen: Mapping[str, float]) -> list[tuple[str, float]]:
        return [(name, weight * seen[name]) for name, weight in self.weights.items()]

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
        # Of log2(words), 0.2 to 1.0 for 3 to 1,000 words: a longer prompt holds more to keep apart. It tips
        # the scale where something else speaks for a task, and never outweighs the bias below 1,000 words.
        "length": 0.1,
        # Of log2(1 + marks), at most 3. One mark (0.6) may be a mention of code, two (0.95) with the length
        # of a sentence are a task.
        "code": 0.6,
        # As code: one mark may be a price or a date, two are a calculation.
        "maths": 0.6,
        # Beside maths, which counts most of the same marks: small models err in products more than in sums,
        # but "per" and "x / y" are in ordinary texts too. At most 0.6.
        "products": 0.2,
        # Numbers in ten words, at most 3: a text full of numbers (1.05) is a calculation without any mark.
        "numbers": 0.35,
        # Digits of the longest number, at most 10: steps by hand grow with them. Longer numbers are
        # identifiers; the largest weight (1.0) cancels the bias and no more.
        "digits": 0.1,
        # A short question without maths is looked up, not thought over: it cancels one mark of code.
        "question": -0.6,
        # "Why", "prove", "compare" ask for a thought. Alone they cancel the bias, so that the length of any
        # sentence decides for it.
        "reasons": 1.0,
        # Of log2(1 + turns): later turns lean on what was thought before, and somebody waits at each of them.
        # Ten turns (0.35) undo the length of a sentence, no more.
        "history": -0.1,
        # Of log2(1 s / target), at most 4: a thought takes seconds. A target of 250 ms (1.0) undoes "reasons",
        # 60 ms (2.0) undoes most tasks.
        "urgency": -0.5,
        # Requests beyond the engine's places, over its places: where as many wait as run (1.0), only what is
        # surely a task is thought over, since each thought makes all others wait.
        "load": -1.0,
    },
    # Most prompts of a chat are talk. Two signs of a task are needed, or one and a sentence.
    bias=-1.0,
)
"""Set by hand, each weight for the reason beside it."""

Selector = LinearModeRouter | LearnedModeRouter


def read_selector(path: str | Path, folder: Path | None = None) -> Selector:
    """The selector in a settings file of `fastslow tune --modes`, for the model in a folder; None = any.
    ValueError in one sentence about the file, or that it was found with another model."""
    named = f"settings file {str(path)!r}"
    if not is_file(Path(path)):
        raise ValueError(f"{named} cannot be read: there is no such file")
    record = read_object(Path(path))
    check_model(record, folder, named)
    given = record.get("auto")
    if given is None:
        raise ValueError(
            f"{named} has no selector under 'auto'; `fastslow tune --modes` writes one"
        )
    return _selector(given, named)


def checkpoint_selector(folder: Path) -> Selector:
    """The selector under "auto" in a checkpoint's `fastslow.json`, else the built-in one. ValueError with
    one sentence about the file."""
    path = folder / "fastslow.json"
    given = read_object(path).get("auto")
    return BUILT_IN if given is None else _selector(given, str(path))


def _selector(given: Any, named: str) -> Selector:
    learned = isinstance(given, dict) and "layer" in given
    kind: type[Selector] = LearnedModeRouter if learned else LinearModeRouter
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{named}: auto {sentence(error, kind.model_fields)}") from error


def choose(router: ModeRouter, facts: PromptFacts, presets: Mapping[str, Mode]) -> ModeChoice:
    """The preset that a mode router takes, with a line that says why. ValueError where it names no preset, or
    a preset that would choose again."""
    chosen = router(facts)
    if isinstance(chosen, str):
        name = getattr(router, "__name__", type(router).__name__)
        chosen = ModeChoice(chosen, f"{chosen}: {name}")
    named = chosen[0] if isinstance(chosen, tuple) and len(chosen) == 2 else chosen
    known = [name for name, mode in presets.items() if not mode.auto]
    if named not in known:
        raise ValueError(f"auto chose {named!r}, which is no preset{nearest(str(named), known)}")
    choice = ModeChoice(*chosen)
    if not isinstance(choice.why, str | None):
        raise ValueError(f"auto chose {named!r} because of {choice.why!r}, which is no text")
    return choice
