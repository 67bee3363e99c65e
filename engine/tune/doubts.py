"""When to give up a fast answer: the threshold of escalation, from log-probabilities already seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastslow.engine.confidence import Confidence
from fastslow.engine.params import Escalation
from fastslow.engine.tune.selector import FOLDS, Bools, Figures, Floats, Outcomes
from fastslow.engine.tune.trial import Pair

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
