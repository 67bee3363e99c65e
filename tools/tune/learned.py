"""A learned `auto`, fitted to graded answers in several modes by the hidden state at the prompt's end, and judged on
tasks that the fit did not see. Letters: N tasks, M modes, H hidden size, K principal components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PrivateAttr

from fastslow.engine.host.progress import Report
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.policies.mode_router import PromptFacts
from fastslow.tools.prompts import Task
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.selector import AnswersByMode, Bools, F64s, Figures, fit, folds

SIZES = (4, 16, 64, 256)  # components that the chances depend on: what predicts best is taken
EACH = 8  # tasks for a component, at least
COSTS = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 60)])  # of a token, in right answers
LEAST = 1e-6  # chance of what came out
BINS = 10  # of chances that are compared with what came out


def taken(chances_NM: F64s, tokens_NM: F64s, cost: float) -> NDArray[np.int64]:
    """The place of the mode that each task gets, [N]."""
    places: NDArray[np.int64] = (chances_NM - cost * tokens_NM).argmax(1)
    return places


class _Recorder(LearnedModeRouter):
    """Keeps hidden states, and stays in the mode that read the prompt."""

    _seen: list[F64s] = PrivateAttr(default_factory=list)

    def judge(self, facts: PromptFacts) -> Callable[[torch.Tensor], tuple[int, str]]:
        def place(hidden_H: torch.Tensor) -> tuple[int, str]:
            self._seen.append(hidden_H.double().numpy())
            return 0, ""

        return place


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
    hidden_NH: F64s, answers: AnswersByMode, between: tuple[str, ...], layer: int
) -> LearnedModeRouter:
    """Chances by logistic regression on the leading components of the hidden state, then calibrated by their scores
    on tasks that a fit did not see (Platt 1999); tokens by least squares. No cost yet."""
    means, scale = hidden_NH.mean(0), np.maximum(hidden_NH.std(0), 1e-6)
    x_NH = (hidden_NH - means) / scale
    _, _, directions = np.linalg.svd(x_NH, full_matrices=False)
    parts: dict[str, Any] = {"weights": [], "bias": [], "token_weights": [], "tokens": []}
    sizes = [k for k in SIZES if k == SIZES[0] or k * EACH <= len(x_NH)]
    for m in range(len(between)):
        tries = (_held_out(x_NH @ directions[:k].T, answers.right[:, m]) for k in sizes)
        _, k, slope, offset = min(tries)
        z_NK = x_NH @ directions[:k].T
        found = fit(z_NK, answers.right[:, m])
        ones = np.column_stack([np.ones(len(z_NK)), z_NK])
        costs = np.linalg.solve(ones.T @ ones + np.eye(k + 1), ones.T @ answers.tokens[:, m])
        base = slope * (found.bias - found.means @ found.weights) + offset
        for own_K, at, names in (
            (slope * found.weights, base, ("weights", "bias")),
            (costs[1:], costs[0], ("token_weights", "tokens")),
        ):
            row_H = own_K @ directions[:k] / scale
            parts[names[0]].append(row_H.tolist())
            parts[names[1]].append(float(at - means @ row_H))
    return LearnedModeRouter(between=between, layer=layer, **parts)


def _held_out(z_NK: F64s, right_N: Bools) -> tuple[float, int, float, float]:
    """The log-loss of calibrated scores of fits that did not see a task; components; slope and offset."""
    scores_N = np.zeros(len(z_NK))
    for own, others in folds(len(z_NK)):
        scores_N[own] = fit(z_NK[others], right_N[others]).score(z_NK[own])
    line = fit(scores_N[:, None], right_N)
    logits, slope = line.score(scores_N[:, None]), float(line.weights[0])
    loss = float((np.logaddexp(0, logits) - right_N * logits).mean())
    return loss, z_NK.shape[1], slope, line.bias - slope * float(line.means[0])


@dataclass(frozen=True, slots=True)
class Learned:
    """A learned router, and what it gives on tasks that neither its weights nor its cost have seen."""

    router: LearnedModeRouter
    figures: Figures
    calibration: list[tuple[float, float]]  # of BINS of as many: the mean chance, the share right
    loss: float  # of the chances, in nats

    @property
    def miscalibrated(self) -> float:
        """The mean distance of chances from shares that are right (expected calibration error)."""
        return fmean(abs(said - right) for said, right in self.calibration)

    def record(self) -> dict[str, Any]:
        """Record for the settings file."""
        said = {name: getattr(self, name) for name in ("calibration", "miscalibrated", "loss")}
        return asdict(self.figures) | said


def learn(
    hidden_NH: F64s,
    answers: AnswersByMode,
    between: tuple[str, ...],
    layer: int,
    keep: float,
) -> Learned:
    """Fit a router whose cost is the one with fewest tokens of those that keep `keep` of what the last mode is better
    by."""
    count = len(hidden_NH)
    chances, tokens = np.zeros_like(answers.tokens), np.zeros_like(answers.tokens)
    for own, others in folds(count):
        fitted = fit_learned(hidden_NH[others], answers.only(others), between, layer)
        chances[own], tokens[own] = fitted.outlook(hidden_NH[own])
    goes = np.zeros(count, dtype=np.int64)
    for own, others in folds(count):
        cost = _cheapest(answers.only(others), chances[others], tokens[others], keep)
        goes[own] = taken(chances[own], tokens[own], cost)
    said = np.where(answers.right, chances, 1 - chances)  # of what came out
    router = fit_learned(hidden_NH, answers, between, layer)
    cost = _cheapest(answers, chances, tokens, keep)
    return Learned(
        router.model_copy(update={"cost": cost}),
        answers.of(goes),
        calibration(chances.ravel(), answers.right.ravel()),
        float(-np.log(np.maximum(said, LEAST)).mean()),
    )


def _cheapest(answers: AnswersByMode, chances_NM: F64s, tokens_NM: F64s, keep: float) -> float:
    """The cost with the fewest tokens of those that keep enough; the largest where none does."""
    found = [(answers.of(taken(chances_NM, tokens_NM, cost)), float(cost)) for cost in COSTS]
    aim = answers.aim(keep)
    able = [(one.tokens, cost) for one, cost in found if one.accuracy >= aim]
    return min(able)[1] if able else float(COSTS[-1])


def calibration(chances: F64s, right: Bools) -> list[tuple[float, float]]:
    """Calibration: mean chance and accuracy of each of BINS equal bins."""
    parts = np.array_split(chances.argsort(), BINS)
    return [(float(chances[some].mean()), float(right[some].mean())) for some in parts]
