"""What decides between two modes, fitted to graded tasks and judged on tasks that the fit did not see: a
selector (logistic regression), and the confidence below which an answer is begun again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.params import Escalation
from fastslow.engine.sampling.confidence import Confidence
from fastslow.tools.prompts import Task

F64s = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
RIDGE = 1.0  # strength of the L2 penalty on weights of standardised features
STEPS = 50  # of Newton's method, at most
ENOUGH = 1e-8
CUTS = 60
MAX_TASK_WEIGHT = 5.0  # in mean weights
Tried = tuple[Escalation, Bools, F64s]  # which answers it gives up, and after how many seconds
WINDOWS = (1, 4, 16)
BELOW = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 0.999)
TRIED = [  # to begin again in the better mode, whose figures are known
    Escalation(below=below, window=window, how="restart") for window in WINDOWS for below in BELOW
]


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One answer to a task."""

    right: bool
    seconds: float  # from the call to its last token
    logprobs: tuple[float, ...] = ()  # of its tokens, where they were asked for
    tokens: int = 0
    first: float = 0.0  # seconds to the first token
    thought: int = 0  # tokens


@dataclass(frozen=True, slots=True)
class Pair:
    """One task, answered cheaply and well."""

    task: Task
    cheap: GradedAnswer
    good: GradedAnswer

    @property
    def gains(self) -> bool:
        """Whether the better mode is what it took."""
        return self.good.right and not self.cheap.right


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


def fit(features_NF: F64s, wanted_N: Bools, weights_N: F64s | None = None) -> Fit:
    """Logistic regression with a ridge penalty, by Newton's method with halved steps; a feature that never
    changes gets weight 0. weights_N: how much each task counts; default: all alike."""
    count = np.ones(len(wanted_N)) if weights_N is None else weights_N
    means, deviation = features_NF.mean(0), features_NF.std(0)
    scale = np.where(deviation > 1e-9, deviation, np.inf)
    x = np.column_stack([np.ones(len(features_NF)), (features_NF - means) / scale])
    y = wanted_N.astype(np.float64)
    penalty = np.full(x.shape[1], RIDGE)
    penalty[0] = 1e-3  # with one class only, the score would be infinite
    w = np.zeros(x.shape[1])

    def loss(at: F64s) -> float:
        logits = x @ at
        return float(count @ (np.logaddexp(0, logits) - y * logits) + penalty @ at**2 / 2)

    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        slope = x.T @ (count * (p - y)) + penalty * w
        bend = (x * (count * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
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


def held_out_scores(features_NF: F64s, wanted_N: Bools, weights_N: F64s) -> F64s:
    """The score of every task [N] by a fit that has not seen its fold."""
    scores = np.zeros(len(features_NF))
    for own, others in folds(len(features_NF)):
        fitted = fit(features_NF[others], wanted_N[others], weights_N[others])
        scores[own] = fitted.score(features_NF[own])
    return scores


@dataclass(frozen=True, slots=True)
class Figures:
    """What a way to choose gives."""

    accuracy: float  # share right
    seconds: float  # mean
    share_in_better_mode: float
    tokens: float = 0.0  # mean, of an answer


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Both modes on the same tasks, [N] each."""

    cheap_right: Bools
    good_right: Bools
    cheap_seconds: F64s
    good_seconds: F64s
    cheap_tokens: F64s
    good_tokens: F64s

    @classmethod
    def of_pairs(cls, pairs: Sequence[Pair]) -> Outcomes:
        """What both modes did on each task."""
        sides = [pair.cheap for pair in pairs], [pair.good for pair in pairs]
        return cls(
            *(np.array([answer.right for answer in side]) for side in sides),
            *(np.array([answer.seconds for answer in side]) for side in sides),
            *(np.array([answer.tokens for answer in side]) for side in sides),
        )

    def of(self, goes_N: Bools, before_N: F64s | None = None) -> Figures:
        """Figures where some tasks go to the better mode, after some seconds in the cheap one."""
        good_seconds = self.good_seconds if before_N is None else before_N + self.good_seconds
        right = np.where(goes_N, self.good_right, self.cheap_right)
        seconds = np.where(goes_N, good_seconds, self.cheap_seconds)
        tokens = np.where(
            goes_N, self.good_tokens, self.cheap_tokens
        )  # of the answer that is given
        shares = float(right.mean()), float(seconds.mean()), float(goes_N.mean())
        return Figures(*shares, float(tokens.mean()))

    def only(self, places: Sequence[int]) -> Outcomes:
        """The outcomes of some tasks."""
        some = list(places)
        return Outcomes(*(getattr(self, part)[some] for part in self.__slots__))

    @property
    def counts(self) -> F64s:
        """How much each task counts for a selector, [N]: one that is better off in the better mode
        counts 1, another by what time it would lose there, over the mean."""
        lost = np.maximum(self.good_seconds - self.cheap_seconds, 0.0)
        share = np.clip(
            lost / max(float(lost.mean()), ENOUGH), 1 / MAX_TASK_WEIGHT, MAX_TASK_WEIGHT
        )
        counts: F64s = np.where(self.good_right & ~self.cheap_right, 1.0, share)
        return counts

    @property
    def cheap(self) -> Figures:
        return self.of(np.zeros(len(self.cheap_right), dtype=np.bool_))

    @property
    def good(self) -> Figures:
        return self.of(np.ones(len(self.cheap_right), dtype=np.bool_))

    def aim(self, keep: float) -> float:
        """The accuracy that keeps this share of the better mode's gain; above 1 if there is no gain."""
        gain = self.good.accuracy - self.cheap.accuracy
        return self.cheap.accuracy + keep * gain if gain > 0 else 2.0


def thresholds(scores_N: F64s) -> list[float]:
    """Places to cut scores at, from all above to none: at most about CUTS, between scores."""
    ranked = np.unique(scores_N)
    if len(ranked) > CUTS:
        ranked = np.unique(np.quantile(ranked, np.linspace(0, 1, CUTS)))
    between = (ranked[1:] + ranked[:-1]) / 2
    return [float(ranked[0] - 1), *between.tolist(), float(ranked[-1] + 1)]


def cheapest(scores_N: F64s, outcomes: Outcomes, aim: float) -> float:
    """The threshold that takes least time of those whose accuracy reaches `aim`; the one above all
    scores if none does."""
    cuts = thresholds(scores_N)
    found = [(outcomes.of(scores_N > cut), cut) for cut in cuts]
    able = [(figures.seconds, cut) for figures, cut in found if figures.accuracy >= aim - 1e-12]
    return min(able)[1] if able else cuts[-1]


def judge(features_NF: F64s, wanted_N: Bools, outcomes: Outcomes, keep: float) -> Figures:
    """What a fitted selector gives on tasks that neither its weights nor its threshold have seen: each
    fold's threshold is chosen on the other folds' own held-out scores. wanted_N: tasks that gain."""
    count, counts = len(features_NF), outcomes.counts
    goes = np.zeros(count, dtype=np.bool_)
    for own, others in folds(count):
        inner = held_out_scores(features_NF[others], wanted_N[others], counts[others])
        some = outcomes.only(others)
        cut = cheapest(inner, some, some.aim(keep))
        fitted = fit(features_NF[others], wanted_N[others], counts[others])
        goes[own] = fitted.score(features_NF[own]) > cut
    return outcomes.of(goes)


def given_up(pairs: Sequence[Pair], setting: Escalation) -> tuple[Bools, F64s]:
    """Which cheap answers are given up, and after how many seconds, [N] each."""
    goes, before = np.zeros(len(pairs), dtype=np.bool_), np.zeros(len(pairs))
    for i, pair in enumerate(pairs):
        confidence = Confidence(setting, to_the_end=True)
        logprobs = pair.cheap.logprobs
        kept = confidence.keeps(logprobs)
        confidence.take(logprobs[:kept], last=kept == len(logprobs))
        goes[i] = confidence.fell
        before[i] = pair.cheap.seconds * confidence.tokens / max(1, len(logprobs))
    return goes, before


def judge_escalation(
    pairs: Sequence[Pair], outcomes: Outcomes, keep: float
) -> tuple[Escalation | None, Figures]:
    """The setting that keeps `keep` of the gain in the least time, None if none does; and its figures, each
    fold's setting chosen on the others."""
    tried = [(setting, *given_up(pairs, setting)) for setting in TRIED]
    count = len(pairs)
    goes, before = np.zeros(count, dtype=np.bool_), np.zeros(count)
    for own, others in folds(count):
        if (best := _best(tried, outcomes, others, keep)) is not None:
            _, fell, after = best
            goes[own], before[own] = fell[own], after[own]
    final = _best(tried, outcomes, range(count), keep)
    return final and final[0], outcomes.of(goes, before)


def _best(
    tried: Sequence[Tried], outcomes: Outcomes, places: Sequence[int], keep: float
) -> Tried | None:
    some = list(places)
    part = outcomes.only(some)
    found = [(part.of(one[1][some], one[2][some]), one) for one in tried]
    able = [pair for pair in found if pair[0].accuracy >= part.aim(keep) - 1e-12]
    best = min(able, key=lambda pair: pair[0].seconds, default=None)
    return best and best[1]
