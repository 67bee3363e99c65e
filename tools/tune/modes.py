"""Tuning the choice between modes: graded tasks answered in each, a learned router, and an escalation."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from fastslow.engine.host.progress import Report
from fastslow.engine.params import Escalation, Mode, SamplingParams
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.policies.auto import BUILT_IN
from fastslow.policies.features import count_words, features
from fastslow.policies.mode_router import PromptFacts
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import Task
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.learned import Learned, hidden_states, learn
from fastslow.tools.tune.runner import say_fits
from fastslow.tools.tune.selector import (
    FOLDS,
    AnswersByMode,
    F64s,
    Figures,
    GradedAnswer,
    judge_escalation,
)

FEWEST = 4 * FOLDS  # tasks; below, a fold says nothing
CHEAP, GOOD = MODES = "fast", "deep"
ESCALATING = "escalating"  # the preset: fast, begun again in deep where it is unsure
BRIEF = "brief"  # the preset: deep, with a budget that half of its thoughts keep
WAYS = "auto", ESCALATING  # to choose


@dataclass(slots=True)
class ModesFound:
    """Results of graded tasks for fast, deep, and ways to choose between them. `figures`: "fast", "deep", "auto" (the
    learned router), "escalating" (fast, begun again where it is unsure), "built-in auto", and "brief" (deep with a
    budget) where the model thinks. Those of the fitted ones are of tasks that the fit did not see."""

    tasks: list[Task]
    keep: float  # share of the better mode's gain to keep
    figures: dict[str, Figures]
    learned: Learned
    escalation: Escalation | None
    brief: Mode | None = None
    stopped: bool = False  # by Ctrl-C
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    def kept(self, name: str) -> float | None:
        """The share of the better mode's gain that a way keeps; None without a gain."""
        low, high = (self.figures[mode].accuracy for mode in MODES)
        return (self.figures[name].accuracy - low) / (high - low) if high > low else None

    def of_time(self, name: str) -> float:
        """Time relative to the better mode."""
        return self.figures[name].seconds / self.figures[GOOD].seconds

    @property
    def best_way(self) -> str:
        """auto or escalating: the cheaper of those that keep enough, else the one that keeps more."""
        able = [way for way in WAYS if (self.kept(way) or 0.0) >= self.keep - 0.05]
        if able:
            return min(able, key=self.of_time)
        return max(WAYS, key=lambda way: self.kept(way) or 0.0)

    def headline(self) -> str:
        """Say in a sentence what choosing gives."""
        low, high = (self.figures[mode].accuracy for mode in MODES)
        if high <= low:
            return (
                f"On {len(self.tasks)} tasks, {GOOD} is no better than {CHEAP} ({high:.0%} and "
                f"{low:.0%} right): {CHEAP} is the mode to take."
            )
        way = self.best_way
        return (
            f"On {len(self.tasks)} tasks, {way} keeps {self.kept(way) or 0.0:.0%} of what {GOOD} is "
            f"better by ({low:.0%} to {high:.0%} right) in {self.of_time(way):.0%} of its time."
        )

    def table(self) -> Table:
        """Every way to choose; the best one is bold."""
        table = Table("way", "right", "of the gain", "ms", "of the time", "tokens", f"not {CHEAP}")
        for name, figures in self.figures.items():
            error = math.sqrt(figures.accuracy * (1 - figures.accuracy) / len(self.tasks))
            kept = self.kept(name)
            table.add_row(
                name,
                f"{figures.accuracy:.1%} ± {error:.1%}",
                "-" if kept is None else f"{kept:.0%}",
                f"{1000 * figures.seconds:.0f}",
                f"{self.of_time(name):.0%}",
                f"{figures.tokens:.1f}",
                f"{figures.share_in_other_modes:.0%}",
                style="bold" if name == self.best_way else None,
            )
        table.caption = (
            f"of tasks that the fit did not see ({FOLDS} folds); the chances of auto are off by "
            f"{self.learned.miscalibrated:.1%}"
        )
        return table

    def settings(self) -> dict[str, Any]:
        """Parts of the settings file: the router of mode auto, presets that have a budget and that escalate,
        and for people the figures."""
        figures = {
            name: asdict(one) | {"gain_kept": self.kept(name), "of_its_time": self.of_time(name)}
            for name, one in self.figures.items()
        }
        figures["auto"] |= self.learned.record()
        grading = Counter(task.grading for task in self.tasks)
        measured = {"tasks": len(self.tasks), "grading": grading, "keep": self.keep}
        parts: dict[str, Any] = {
            "auto": self.learned.router.model_dump(mode="json"),
            "measured_modes": {**measured, "figures": figures, **self.circumstances},
            "modes": {},
        }
        if self.brief is not None:
            parts["modes"][BRIEF] = self.brief.model_dump(mode="json", exclude_unset=True)
        if self.escalation is not None:
            escalate = self.escalation.model_dump(mode="json", exclude_none=True)
            preset = {"base": CHEAP, "escalate": {**escalate, "to": GOOD}}
            preset["description"] = f"{CHEAP}, begun again in {GOOD} where it is unsure"
            parts["modes"][ESCALATING] = preset
        return parts


def tune_modes(
    llm: LLM,
    tasks: Sequence[Task],
    *,
    sampling: SamplingParams,
    keep: float = 0.9,
    minutes: float = 10.0,
    batch: int = 1,
    report: Report,
) -> ModesFound:
    """Fit what decides between fast, deep, and deep with a budget. keep: the router and the threshold are the cheapest
    that keep this share of what deep is better by. minutes: for the answers of fast and deep; those with a budget
    take at most half as long again. ValueError: something is out of range, or too few tasks were answered.
    KeyboardInterrupt: before enough was answered."""
    if len(tasks) < FEWEST:
        raise ValueError(f"{len(tasks)} graded tasks are too few: give at least {FEWEST}")
    if not 1 <= batch <= len(tasks):
        raise ValueError(f"batch={batch} is outside 1..{len(tasks)}, the number of tasks")
    order = list(tasks)
    random.Random(0).shuffle(order)  # a file is often sorted by kind
    pairs: list[tuple[GradedAnswer, GradedAnswer]] = []
    brief, stopped = None, False
    try:
        pairs.extend(answer_tasks(llm, order, sampling, 60 * minutes, report, batch))
        if len(pairs) >= FEWEST:
            brief = with_budget(llm, order, [good for _, good in pairs], sampling, report)
    except KeyboardInterrupt:  # what came before is there
        if len(pairs) < FEWEST:
            raise
        stopped = True
    if len(pairs) < FEWEST:
        raise ValueError(f"{len(pairs)} tasks were answered in time; {FEWEST} are needed")
    order, layers = order[: len(pairs)], len(llm.model.config.layers)
    sides = {mode: [pair[place] for pair in pairs] for place, mode in enumerate(MODES)}
    if brief is not None:
        sides = {CHEAP: sides[CHEAP], BRIEF: brief[1], GOOD: sides[GOOD]}
    looked = sorted({0, layers // 3, layers * 2 // 3, layers - 1})
    hidden = {n: hidden_states(llm, order, CHEAP, n, report) for n in looked}
    report(1.0, f"fitting to {len(order)} tasks")
    return find(order, sides, hidden, keep, brief and brief[0], stopped)


def find(
    tasks: list[Task],
    sides: dict[str, list[GradedAnswer]],
    hidden: dict[int, F64s],
    keep: float,
    brief: Mode | None = None,
    stopped: bool = False,
) -> ModesFound:
    """Judge answers that are there; see `tune_modes`. sides: by mode, the cheapest first and the best last. hidden:
    by layer, states [N, H] at the prompts' ends; the layer that tells most is taken. stopped: some are missing, by
    Ctrl-C."""
    answers, between = AnswersByMode.of_modes(list(sides.values())), tuple(sides)
    by_hand = np.array([BUILT_IN.score(features(prompt_facts(task))) for task in tasks])
    each = [learn(own, answers, between, layer, keep) for layer, own in hidden.items()]
    learned = min(each, key=lambda one: one.loss)
    escalation, escalating = judge_escalation(sides[CHEAP], answers, keep)
    last = len(between) - 1
    figures = {mode: answers.all_in(place) for place, mode in enumerate(between)}
    figures |= {"auto": learned.figures, ESCALATING: escalating}
    figures["built-in auto"] = answers.of(last * (by_hand > 0), np.zeros(len(tasks)))
    return ModesFound(tasks, keep, figures, learned, escalation, brief, stopped)


def with_budget(
    llm: LLM,
    tasks: Sequence[Task],
    good: Sequence[GradedAnswer],
    sampling: SamplingParams,
    report: Report,
) -> tuple[Mode, list[GradedAnswer]] | None:
    """Return `deep` with the median thought length as its budget, and its answers; None without thoughts. Thoughts
    within the budget are reused from `deep`."""
    thoughts = sorted(answer.thought for answer in good if answer.thought)
    if not thoughts:
        return None
    most = thoughts[len(thoughts) // 2]
    mode = Mode(
        base=GOOD, thinking_budget=most, description=f"{GOOD}, at most {most} tokens of thought"
    )
    found, longer = list(good), [n for n, answer in enumerate(good) if answer.thought > most]
    how: dict[str, Any] = {"mode": mode, "speculation": PLAIN, "progress": False}
    for done, n in enumerate(longer):
        report(done / len(longer), f"{done} of {len(longer)} tasks with a budget")
        found[n] = _graded(tasks[n], llm.generate([tasks[n].prompt], sampling, **how)[0])
    return mode, found


def prompt_facts(task: Task) -> PromptFacts:
    """Return the facts that a mode router would see of a task."""
    texts = [message["content"] for message in task.prompt]
    asked = [m["content"] for m in task.prompt if m["role"] == "user"]
    turns = max(0, sum(m["role"] != "system" for m in task.prompt) - 1)
    return PromptFacts((asked or texts)[-1], turns, count_words(" ".join(texts)))


def answer_tasks(
    llm: LLM,
    tasks: Sequence[Task],
    sampling: SamplingParams,
    seconds: float,
    report: Report,
    batch: int,
) -> Iterator[tuple[GradedAnswer, GradedAnswer]]:
    """Answer tasks in both modes until all are done or the time is over. Plain decoding, so that times depend on
    modes and not on drafts; the cheap mode gives its tokens' log-probabilities, which say how sure it was."""
    params = {CHEAP: sampling.model_copy(update={"logprobs": 0}), GOOD: sampling}
    begun, last = time.monotonic(), 0.0
    llm.generate([tasks[0].prompt], sampling, mode=CHEAP, speculation=PLAIN, progress=False)
    for start in range(0, len(tasks), batch):
        gone = time.monotonic() - begun
        if start and gone + last > seconds:
            break
        share = min(1.0, max(gone / seconds, start / len(tasks)))
        report(share, f"{start} of {len(tasks)} tasks")
        some, found = tasks[start : start + batch], {}
        prompts = [task.prompt for task in some]
        for mode in MODES if start // batch % 2 else reversed(MODES):
            outs = llm.generate(prompts, params[mode], mode=mode, speculation=PLAIN, progress=False)
            found[mode] = map(_graded, some, outs)
        last = time.monotonic() - begun - gone
        if not start:
            say_fits(batch * (1 + (seconds - gone - last) / last), len(tasks), "tasks")
        yield from zip(found[CHEAP], found[GOOD], strict=True)


def _graded(task: Task, out: Output) -> GradedAnswer:
    metrics = out.metrics
    seconds = metrics.ttft + metrics.tpot * max(0, metrics.tokens - 1)
    logprobs = tuple(table[token] for table, token in zip(out.logprobs or (), out.token_ids))
    counts = metrics.tokens, metrics.thinking_tokens
    return GradedAnswer(task.right(out.text), seconds, logprobs, *counts, metrics.ttft)
