"""Choice between modes, fitted to graded tasks and judged on tasks that the fit did not see: answers and their
figures, logistic regression, and the confidence below which an answer is begun again.

Letters: N tasks, M modes, the cheapest first and the best last, F features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.params import Escalation
from fastslow.engine.sampling.confidence import Confidence

F64s = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
RIDGE = 1.0  # strength of the L2 penalty on weights of standardised features
STEPS = 50  # of Newton's method, at most
ENOUGH = 1e-8
Tried = tuple[Escalation, Bools, F64s]  # which answers it gives up, and after how many seconds
WINDOWS = (1, 4, 16)
BELOW = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 0.999)
TRIED = [  # to begin again in the better mode, whose figures are known
    Escalation(below=below, window=window, how="restart") for window in WINDOWS for below in BELOW
]


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """An answer to a task, and whether it is right."""

    right: bool
    seconds: float  # from the call to its last token
    logprobs: tuple[float, ...] = ()  # of its tokens, where they were asked for
    tokens: int = 0
    thought: int = 0  # of its tokens
    first: float = 0.0  # seconds to the first token


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a way to choose."""

    accuracy: float  # share right
    seconds: float  # mean
    share_in_other_modes: float  # than the cheapest
    tokens: float  # mean, of an answer


@dataclass(frozen=True, slots=True)
class AnswersByMode:
    """Answers of every mode to every task, [N, M], and in how many seconds the first one read the prompts [N]."""

    right: Bools
    tokens: F64s
    seconds: F64s
    read: F64s

    @classmethod
    def of_modes(cls, sides: Sequence[Sequence[GradedAnswer]]) -> AnswersByMode:
        """From the answers of each mode."""
        names = "right", "tokens", "seconds"
        parts = [np.array([[getattr(one, n) for one in side] for side in sides]).T for n in names]
        read = np.array([one.first for one in sides[0]])
        return cls(parts[0], parts[1].astype(float), parts[2], read)

    def only(self, places: Sequence[int]) -> AnswersByMode:
        """Answers to some of the tasks."""
        some = list(places)
        return AnswersByMode(
            self.right[some], self.tokens[some], self.seconds[some], self.read[some]
        )

    def of(self, taken_N: NDArray[np.int64], before_N: F64s | None = None) -> Figures:
        """Figures where each task gets the mode at this place. before_N: seconds in the first mode until another one
        begins; default: it has read the prompt."""
        each = np.arange(len(taken_N)), taken_N
        before = self.read if before_N is None else before_N
        seconds = self.seconds[each] + np.where(taken_N > 0, before, 0.0)
        parts = self.right[each], seconds, taken_N > 0, self.tokens[each]
        return Figures(*(float(part.mean()) for part in parts))

    def all_in(self, place: int) -> Figures:
        """Figures of one mode alone."""
        return self.of(np.full(len(self.read), place), np.zeros(len(self.read)))

    def aim(self, keep: float) -> float:
        """The accuracy that keeps this share of the best mode's gain; above 1 if there is no gain."""
        low, high = (float(self.right[:, place].mean()) for place in (0, -1))
        return low + keep * (high - low) - 1e-12 if high > low else 2.0


@dataclass(frozen=True, slots=True)
class Fit:
    """score = bias + (features - means) @ weights, as a logit."""

    weights: F64s  # [F]
    means: F64s  # [F]
    bias: float

    def score(self, features_NF: F64s) -> F64s:
        """[N]."""
        scores: F64s = self.bias + (features_NF - self.means) @ self.weights
        return scores


def fit(features_NF: F64s, wanted_N: Bools) -> Fit:
    """Logistic regression with a ridge penalty, by Newton's method with halved steps; a feature that never
    changes gets weight 0."""
    means, deviation = features_NF.mean(0), features_NF.std(0)
    scale = np.where(deviation > 1e-9, deviation, np.inf)
    x = np.column_stack([np.ones(len(features_NF)), (features_NF - means) / scale])
    y = wanted_N.astype(np.float64)
    penalty = np.full(x.shape[1], RIDGE)
    penalty[0] = 1e-3  # with one class only, the score would be infinite
    w = np.zeros(x.shape[1])

    def loss(at: F64s) -> float:
        logits = x @ at
        return float((np.logaddexp(0, logits) - y * logits).sum() + penalty @ at**2 / 2)

    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        slope = x.T @ (p - y) + penalty * w
        bend = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step, size = np.linalg.solve(bend, slope), 1.0
        while loss(w - size * step) > loss(w) and size > 1e-6:
            size /= 2
        w = w - size * step
        if float(np.abs(size * step).max()) < ENOUGH:
            break
    return Fit(w[1:] / scale, means, float(w[0]))


def folds(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Fold f is every FOLDS-th task: its places, and those of all others."""
    for fold in range(FOLDS):
        others = [i for i in range(count) if i % FOLDS != fold]
        yield list(range(fold, count, FOLDS)), others


def given_up(cheap: Sequence[GradedAnswer], setting: Escalation) -> tuple[Bools, F64s]:
    """Return which cheap answers are given up, and after how many seconds, [N] each."""
    goes, before = np.zeros(len(cheap), dtype=np.bool_), np.zeros(len(cheap))
    for i, answer in enumerate(cheap):
        confidence = Confidence(setting, to_the_end=True)
        kept = confidence.keeps(answer.logprobs)
        confidence.take(answer.logprobs[:kept], last=kept == len(answer.logprobs))
        goes[i] = confidence.fell
        before[i] = answer.seconds * confidence.tokens / max(1, len(answer.logprobs))
    return goes, before


def judge_escalation(
    cheap: Sequence[GradedAnswer], answers: AnswersByMode, keep: float
) -> tuple[Escalation | None, Figures]:
    """The setting that keeps `keep` of the gain in the least time, None if none does; and its figures, each
    fold's setting chosen on the others."""
    tried = [(setting, *given_up(cheap, setting)) for setting in TRIED]
    count, last = len(cheap), answers.right.shape[1] - 1
    goes, before = np.zeros(count, dtype=np.int64), np.zeros(count)
    for own, others in folds(count):
        if (best := _best(tried, answers, others, keep)) is not None:
            _, fell, after = best
            goes[own], before[own] = last * fell[own], after[own]
    final = _best(tried, answers, range(count), keep)
    return final and final[0], answers.of(goes, before)


def _best(
    tried: Sequence[Tried], answers: AnswersByMode, places: Sequence[int], keep: float
) -> Tried | None:
    some, last = list(places), answers.right.shape[1] - 1
    part = answers.only(some)
    found = [(part.of(last * one[1][some], one[2][some]), one) for one in tried]
    able = [pair for pair in found if pair[0].accuracy >= part.aim(keep)]
    best = min(able, key=lambda pair: pair[0].seconds, default=None)
    return best and best[1]
