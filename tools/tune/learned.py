"""A learned `auto`, fitted to graded answers in several modes by the hidden state at the prompt's end, and judged on
tasks that the fit did not see. Letters: N tasks, M modes, H hidden size, K principal components, C costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr

from fastslow.engine.host.progress import Report
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.tools.prompts import Task
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.selector import Bools, F64s, Figures, fit, folds

SIZES = (4, 16, 64)  # components that the chances depend on: what predicts best is taken
COSTS = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 60)])  # of a token, in right answers
BINS = 10  # of the reliability


@dataclass(frozen=True, slots=True)
class Answers:
    """What every mode made of every task, [N, M], and the seconds [N] in which the first one read its prompt."""

    right: Bools
    tokens: F64s
    seconds: F64s
    read: F64s

    def only(self, places: Sequence[int]) -> Answers:
        """Those of some tasks."""
        some = list(places)
        return Answers(self.right[some], self.tokens[some], self.seconds[some], self.read[some])

    def of(self, taken_N: F64s) -> Figures:
        """Figures where each task gets the mode at this place."""
        each = np.arange(len(taken_N)), taken_N.astype(int)
        seconds = self.seconds[each] + np.where(taken_N > 0, self.read, 0.0)
        return Figures(
            float(self.right[each].mean()),
            float(seconds.mean()),
            float((taken_N > 0).mean()),
            float(self.tokens[each].mean()),
        )

    def curve(self, chances_NM: F64s, tokens_NM: F64s) -> list[Figures]:
        """Of all costs [C], by these chances and tokens."""
        return [self.of(taken(chances_NM, tokens_NM, cost)) for cost in COSTS]

    @property
    def oracle(self) -> list[Figures]:
        """Of all costs, by what came out."""
        return self.curve(self.right.astype(float), self.tokens)


def taken(chances_NM: F64s, tokens_NM: F64s, cost: float) -> F64s:
    """The place of the mode that each task gets, [N]."""
    places: F64s = (chances_NM - cost * tokens_NM).argmax(1)
    return places


def area(points: Sequence[Figures], least: float, most: float) -> float:
    """The mean accuracy over all numbers of tokens between two, of the best mixes of these points."""
    best = np.full(200, 0.0)
    at = np.linspace(least, most, len(best))
    for a in points:
        for b in points:
            if a.tokens <= b.tokens:
                mixed = np.interp(at, [a.tokens, b.tokens], [a.accuracy, b.accuracy])
                best = np.where(at >= a.tokens, np.maximum(best, mixed), best)
    return float(best.mean())


class _Recorder(LearnedModeRouter):
    """Keeps hidden states, and stays in the mode that read the prompt."""

    _seen: list[F64s] = PrivateAttr(default_factory=list)

    def judge(self, hidden_H: torch.Tensor) -> tuple[int, str]:
        self._seen.append(hidden_H.double().numpy())
        return 0, ""


def hidden_states(llm: LLM, tasks: Sequence[Task], mode: str, layer: int, report: Report) -> F64s:
    """The outputs [N, H] of a layer at the prompts' ends, as a mode reads them."""
    rows, none = ((0.0,) * llm.model.config.hidden_size,), (0.0,)
    recorder = _Recorder(
        between=(mode,), layer=layer, weights=rows, bias=none, token_weights=rows, tokens=none
    )
    for done, task in enumerate(tasks):
        report(done / len(tasks), f"reading {done} of {len(tasks)} prompts")
        llm.chat(task.prompt, SamplingParams(max_tokens=1), mode=recorder, speculation=PLAIN)
    return np.array(recorder._seen)


def fit_learned(
    hidden_NH: F64s, answers: Answers, between: tuple[str, ...], layer: int
) -> LearnedModeRouter:
    """Chances by logistic regression on the leading components of the hidden state, then calibrated by their scores
    on tasks that a fit did not see (Platt 1999); tokens by least squares. No cost yet."""
    means, scale = hidden_NH.mean(0), np.maximum(hidden_NH.std(0), 1e-6)
    x_NH = (hidden_NH - means) / scale
    _, _, directions = np.linalg.svd(x_NH, full_matrices=False)
    weights, bias, token_weights, tokens = [], [], [], []

    def add(rows: list[Any], bases: list[Any], own_K: F64s, base: float) -> None:
        row_H = own_K @ directions[: len(own_K)] / scale
        rows.append(tuple(row_H.tolist()))
        bases.append(float(base - means @ row_H))

    for m in range(len(between)):
        right_N = answers.right[:, m]
        best = min(
            (_held_out(x_NH @ directions[:k].T, right_N) for k in SIZES), key=lambda one: one[0]
        )
        _, k, slope, offset = best
        found = fit(x_NH @ directions[:k].T, right_N)
        add(
            weights,
            bias,
            slope * found.weights,
            slope * (found.bias - found.means @ found.weights) + offset,
        )
        z_NK = np.column_stack([np.ones(len(x_NH)), x_NH @ directions[:k].T])
        own = np.linalg.solve(z_NK.T @ z_NK + np.eye(len(z_NK.T)), z_NK.T @ answers.tokens[:, m])
        add(token_weights, tokens, own[1:], own[0])
    return LearnedModeRouter(
        between=between,
        layer=layer,
        weights=weights,
        bias=bias,
        token_weights=token_weights,
        tokens=tokens,
    )


def _held_out(z_NK: F64s, right_N: Bools) -> tuple[float, int, float, float]:
    """The log-loss of calibrated scores of fits that did not see a task; components; slope and offset."""
    scores_N = np.zeros(len(z_NK))
    for own, others in folds(len(z_NK)):
        scores_N[own] = fit(z_NK[others], right_N[others]).score(z_NK[own])
    line = fit(scores_N[:, None], right_N)
    logits = line.score(scores_N[:, None])
    loss = float((np.logaddexp(0, logits) - right_N * logits).mean())
    slope = float(line.weights[0])
    return loss, z_NK.shape[1], slope, line.bias - slope * float(line.means[0])


@dataclass(frozen=True, slots=True)
class Learned:
    """A learned router, and what it gives on tasks that neither its weights nor its cost have seen."""

    router: LearnedModeRouter
    figures: Figures
    calibration: list[dict[str, float]]  # by bin: the mean chance said, the share right, how many
    curves: dict[
        str, list[Figures]
    ]  # accuracy by tokens: of the router, by hand, and of who knows the outcomes
    closed: float  # of the area between by-hand weights and the oracle

    @property
    def miscalibrated(self) -> float:
        """The mean distance of chances from shares that are right (expected calibration error)."""
        total = sum(one["count"] for one in self.calibration)
        return (
            sum(one["count"] * abs(one["said"] - one["right"]) for one in self.calibration) / total
        )

    def record(self) -> dict[str, Any]:
        """For the settings file."""
        curves = {
            name: sorted({(round(one.tokens, 2), round(one.accuracy, 4)) for one in points})
            for name, points in self.curves.items()
        }
        return asdict(self.figures) | {
            "calibration": self.calibration,
            "miscalibrated": self.miscalibrated,
            "curves": curves,
            "closed": self.closed,
        }


def learn(
    hidden_NH: F64s,
    answers: Answers,
    between: tuple[str, ...],
    layer: int,
    keep: float,
    by_hand_N: F64s,
) -> Learned:
    """Fit a router whose cost is the one with fewest tokens of those that keep `keep` of what the last mode is better
    by. by_hand_N: scores above which tasks go to the last mode, to be compared with."""
    count = len(hidden_NH)
    chances, tokens = np.zeros_like(answers.tokens), np.zeros_like(answers.tokens)
    for own, others in folds(count):
        fitted = fit_learned(hidden_NH[others], answers.only(others), between, layer)
        chances[own], tokens[own] = fitted.outlook(hidden_NH[own])
    goes = np.zeros(count)
    for own, others in folds(count):
        cost = _cheapest(answers.only(others), chances[others], tokens[others], keep)
        goes[own] = taken(chances[own], tokens[own], cost)
    last = len(between) - 1
    hand = [
        answers.of(last * (by_hand_N > cut)) for cut in np.unique(np.append(by_hand_N, -np.inf))
    ]
    curves = {"learned": answers.curve(chances, tokens), "by hand": hand, "oracle": answers.oracle}
    ends = answers.of(goes * 0).tokens, answers.of(goes * 0 + last).tokens
    areas = {name: area(points, *ends) for name, points in curves.items()}
    gap = areas["oracle"] - areas["by hand"]
    router = fit_learned(hidden_NH, answers, between, layer)
    cost = _cheapest(answers, chances, tokens, keep)
    return Learned(
        router.model_copy(update={"cost": cost}),
        answers.of(goes),
        calibration(chances.ravel(), answers.right.ravel()),
        curves,
        (areas["learned"] - areas["by hand"]) / gap if gap > 0 else 0.0,
    )


def _cheapest(answers: Answers, chances_NM: F64s, tokens_NM: F64s, keep: float) -> float:
    """The cost with the fewest tokens of those that keep enough; 0 where none does."""
    low, high = (answers.right[:, place].mean() for place in (0, -1))
    pairs = zip(answers.curve(chances_NM, tokens_NM), COSTS, strict=True)
    able = [
        (one.tokens, float(cost))
        for one, cost in pairs
        if one.accuracy >= low + keep * (high - low)
    ]
    return min(able)[1] if able else 0.0


def calibration(chances: F64s, right: Bools) -> list[dict[str, float]]:
    """Chances in BINS of as many, and what share of each was right."""
    parts = np.array_split(chances.argsort(), BINS)
    return [
        {
            "said": float(chances[some].mean()),
            "right": float(right[some].mean()),
            "count": len(some),
        }
        for some in parts
        if len(some)
    ]
