"""Tuning the choice between two modes: graded tasks in both, a selector, a threshold of doubt."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastslow.engine.params import Escalation, SamplingParams
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.types import Situation
from fastslow.llm import LLM
from fastslow.policies.auto import BUILT_IN, Selector
from fastslow.policies.features import LABELS, count_words, features
from fastslow.tools.machine import circumstances
from fastslow.tools.tune.race import Tell
from fastslow.tools.tune.selector import (
    FOLDS,
    Bools,
    Figures,
    Floats,
    Outcomes,
    cheapest,
    fit,
    held_out_scores,
    judge,
)
from fastslow.tools.tune.tasks import Pair, Task, answer_tasks

WINDOWS = (1, 4, 16)
BELOW = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 0.999)


def settings() -> list[Escalation]:
    """What is tried: begin again in the better mode, which is what the figures of both tell of."""
    return [
        Escalation(below=below, window=window, how="restart")
        for window in WINDOWS
        for below in BELOW
    ]


def given_up(pairs: Sequence[Pair], setting: Escalation) -> tuple[Bools, Floats]:
    """Which cheap answers are given up, and after how many seconds, [N] each."""
    goes, before = np.zeros(len(pairs), dtype=np.bool_), np.zeros(len(pairs))
    for i, pair in enumerate(pairs):
        confidence = Confidence(setting, to_the_end=True)
        said = pair.cheap.logprobs
        kept = confidence.keeps(said)
        confidence.take(said[:kept], last=kept == len(said))
        goes[i] = confidence.fell
        before[i] = pair.cheap.seconds * confidence.tokens / max(1, len(said))
    return goes, before


def judge_doubts(
    pairs: Sequence[Pair], outcomes: Outcomes, keep: float, folds: int = FOLDS
) -> tuple[Escalation | None, Figures, list[Figures]]:
    """The setting that keeps `keep` of the gain in the least time.

    Returns:
        The setting, None if none does; its figures, each fold's setting chosen on the others; and
        the figures of every setting that no other beats in both accuracy and time.
    """
    tried = [(setting, *given_up(pairs, setting)) for setting in settings()]
    count = len(pairs)
    goes, before = np.zeros(count, dtype=np.bool_), np.zeros(count)
    for fold in range(folds):
        others = [i for i in range(count) if i % folds != fold]
        own = [i for i in range(count) if i % folds == fold]
        best = _best(tried, outcomes, others, keep) if others else None
        if best is not None and own:
            goes[own], before[own] = tried[best][1][own], tried[best][2][own]
    final = _best(tried, outcomes, range(count), keep)
    every = sorted((outcomes.of(g, b) for _, g, b in tried), key=lambda f: (f.seconds, -f.accuracy))
    front: list[Figures] = []
    for figures in every:
        if not front or figures.accuracy > front[-1].accuracy:
            front.append(figures)
    return None if final is None else tried[final][0], outcomes.of(goes, before), front


def _best(
    tried: Sequence[tuple[Escalation, Bools, Floats]],
    outcomes: Outcomes,
    places: Sequence[int],
    keep: float,
) -> int | None:
    some = list(places)
    part = outcomes.only(some)
    aim, best, least = part.aim(keep), None, math.inf
    for number, (_, goes, before) in enumerate(tried):
        figures = part.of(goes[some], before[some])
        if figures.accuracy >= aim - 1e-12 and figures.seconds < least:
            best, least = number, figures.seconds
    return best


FEWEST = 4 * FOLDS  # tasks; below, a fold says nothing
ESCALATING = "escalating"  # the preset: the cheap mode, begun again in the better one where unsure
SHOWN = 6  # tasks whose decision is shown


@dataclass(slots=True)
class ModesFound:
    """What graded tasks say of two modes and of ways to choose between them.

    `figures`: the two modes by name, "auto" (the fitted selector), "escalating" (fast, begun again
    where it is unsure), "built-in auto". Those of the fitted ones are of tasks that the fit did not see.
    """

    model: str
    modes: tuple[str, str]
    pairs: list[Pair]
    keep: float  # share of the better mode's gain to keep
    batch: int
    sampling: SamplingParams
    figures: dict[str, Figures]
    selector: Selector
    escalation: Escalation | None
    frontier: list[Figures]  # of the selector, by its threshold
    doubts: list[Figures]  # of escalation, by its settings
    decisions: list[tuple[Task, str]]  # a few tasks, and what the selector says of them
    grading: Counter[str]
    stopped: bool
    seconds: float
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    def kept(self, name: str) -> float | None:
        """The share of the better mode's gain that a way keeps; None without a gain."""
        low, high = (self.figures[mode].accuracy for mode in self.modes)
        return (self.figures[name].accuracy - low) / (high - low) if high > low else None

    def of_time(self, name: str) -> float:
        """Its time as a share of the better mode's."""
        return self.figures[name].seconds / self.figures[self.modes[1]].seconds

    def record(self) -> dict[str, Any]:
        """For the settings file."""
        return {
            "tasks": len(self.pairs),
            "grading": dict(self.grading),
            "keep": self.keep,
            "held_out": True,
            "figures": {
                name: {
                    "accuracy": figures.accuracy,
                    "seconds": figures.seconds,
                    "share_in_better_mode": figures.good,
                    "gain_kept": self.kept(name),
                    "of_its_time": self.of_time(name),
                }
                for name, figures in self.figures.items()
            },
            **self.circumstances,
        }


def tune_modes(
    llm: LLM,
    model: str,
    tasks: Sequence[Task],
    *,
    modes: tuple[str, str] = ("fast", "deep"),
    sampling: SamplingParams,
    keep: float = 0.9,
    minutes: float = 10.0,
    batch: int = 1,
    tell: Tell,
) -> ModesFound:
    """Fit what decides between two modes.

    Args:
        llm: the model; nobody else may use it meanwhile.
        model: its name.
        tasks: graded, of the user; they are run in an order of their own.
        modes: names of presets, the cheaper one first.
        sampling: of all answers.
        keep: the selector and the threshold are the cheapest that keep this share of what the better
            mode is better by.
        minutes: for the answers of both modes.
        batch: requests at a time.
        tell: hears how it goes.

    Raises:
        ValueError: something is out of range, a preset is unknown, or too few tasks were answered.
        KeyboardInterrupt: before enough was answered.
    """
    _check(len(tasks), keep, minutes, batch)
    for mode in modes:
        if mode not in llm.modes or llm.modes[mode].auto:
            raise ValueError(f"mode {mode!r} is no preset to choose")
    order = list(tasks)
    random.Random(0).shuffle(order)  # a file is often sorted by kind
    started = time.monotonic()
    pairs, stopped = answer_tasks(llm, order, modes, sampling, 60 * minutes, tell, batch)
    if len(pairs) < FEWEST:
        if stopped:
            raise KeyboardInterrupt
        raise ValueError(f"{len(pairs)} tasks were answered in time; {FEWEST} are needed")
    found = find(model, modes, pairs, keep)
    found.batch, found.sampling, found.stopped = batch, sampling, stopped
    found.seconds = time.monotonic() - started
    return found


def find(model: str, modes: tuple[str, str], pairs: list[Pair], keep: float) -> ModesFound:
    """What answers that are there say; see `tune_modes`.

    The selector stands between the cheap mode and the better one, or, where that is quicker, between
    the cheap mode that escalates and the better one.
    """
    names = list(LABELS)
    seen = [features(situation(pair.task)) for pair in pairs]
    features_NF = np.array([[one[name] for name in names] for one in seen])
    wanted_N = np.array([pair.gains for pair in pairs])
    outcomes = Outcomes(
        np.array([pair.cheap.right for pair in pairs]),
        np.array([pair.good.right for pair in pairs]),
        np.array([pair.cheap.seconds for pair in pairs]),
        np.array([pair.good.seconds for pair in pairs]),
    )
    auto, frontier = judge(features_NF, wanted_N, outcomes, keep)
    fitted = fit(features_NF, wanted_N, outcomes.counts)
    escalation, escalating, doubts = judge_doubts(pairs, outcomes, keep)
    below, between = outcomes, modes
    if escalation is not None:
        checked = outcomes.giving_up(*given_up(pairs, escalation))
        both, its_frontier = judge(features_NF, wanted_N, outcomes, keep, checked)
        if both.seconds < auto.seconds and both.accuracy >= min(outcomes.aim(keep), auto.accuracy):
            auto, frontier, below, between = both, its_frontier, checked, (ESCALATING, modes[1])
    scores = held_out_scores(features_NF, wanted_N, outcomes.counts)
    cut = cheapest(scores, below, outcomes.aim(keep))
    varies = (
        features_NF.std(0) > 1e-9
    )  # of what never changed nothing is known: the usual rules hold
    known = [i for i, name in enumerate(names) if varies[i]]
    selector = Selector(
        between=between,
        weights={names[i]: float(fitted.weights[i]) for i in known}
        | {n: w for n, w in BUILT_IN.weights.items() if n in ("urgency", "load")},
        means={names[i]: float(fitted.means[i]) for i in known},
        bias=fitted.bias,
        threshold=cut,
    )
    usual = np.array([BUILT_IN.score(one) > BUILT_IN.threshold for one in seen])
    return ModesFound(
        model=model,
        modes=modes,
        pairs=pairs,
        keep=keep,
        batch=1,
        sampling=SamplingParams(),
        figures={
            modes[0]: outcomes.cheap,
            modes[1]: outcomes.good,
            "auto": auto,
            ESCALATING: escalating,
            "built-in auto": outcomes.of(usual),
        },
        selector=selector,
        escalation=escalation,
        frontier=frontier,
        doubts=doubts,
        decisions=[(pair.task, selector(situation(pair.task)).why) for pair in pairs[:SHOWN]],
        grading=Counter(pair.task.grading for pair in pairs),
        stopped=False,
        seconds=0.0,
    )


def situation(task: Task) -> Situation:
    """What a chooser would see of a task."""
    said = [message["content"] for message in task.prompt]
    asked = [m["content"] for m in task.prompt if m["role"] == "user"]
    turns = max(0, sum(m["role"] != "system" for m in task.prompt) - 1)
    return Situation((asked or said)[-1], turns, count_words(" ".join(said)))


def _check(tasks: int, keep: float, minutes: float, batch: int) -> None:
    if tasks < FEWEST:
        raise ValueError(f"{tasks} graded tasks are too few: give at least {FEWEST}")
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be above 0 and at most 1")
    if not 0 < minutes <= 24 * 60:
        raise ValueError(f"minutes={minutes} must be above 0 and at most 1440")
    if not 1 <= batch <= tasks:
        raise ValueError(f"batch={batch} is outside 1..{tasks}, the number of tasks")
