"""Tuning the choice between modes: graded tasks answered in each, a selector, an escalation, a learned router."""

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
from fastslow.policies.auto import BUILT_IN, LinearModeRouter
from fastslow.policies.features import LABELS, count_words, features
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.policies.mode_router import PromptFacts
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import Task
from fastslow.tools.tune import selector as fitting
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.learned import Answers, Learned, hidden_states, learn
from fastslow.tools.tune.runner import say_fits
from fastslow.tools.tune.selector import FOLDS, Figures, GradedAnswer, Outcomes, Pair

FEWEST = 4 * FOLDS  # tasks; below, a fold says nothing
CHEAP, GOOD = MODES = "fast", "deep"
ESCALATING = "escalating"  # the preset: fast, begun again in deep where it is unsure
LEARNED = "learned auto"
BRIEF = "brief"  # the preset: deep, with a budget that half of its thoughts keep


@dataclass(slots=True)
class ModesFound:
    """What graded tasks say of fast, deep, and ways to choose between them. `figures`: "fast", "deep", "auto" (the
    fitted selector), "escalating" (fast, begun again where it is unsure), "built-in auto", "learned auto", and "brief"
    (deep with a budget) where the model thinks. Those of the fitted ones are of tasks that the fit did not see."""

    pairs: list[Pair]
    keep: float  # share of the better mode's gain to keep
    figures: dict[str, Figures]
    selector: LinearModeRouter
    escalation: Escalation | None
    stopped: bool = False  # by Ctrl-C
    learned: Learned | None = None
    brief: Mode | None = None
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    def kept(self, name: str) -> float | None:
        """The share of the better mode's gain that a way keeps; None without a gain."""
        low, high = (self.figures[mode].accuracy for mode in MODES)
        return (self.figures[name].accuracy - low) / (high - low) if high > low else None

    def of_time(self, name: str) -> float:
        """Its time as a share of the better mode's."""
        return self.figures[name].seconds / self.figures[GOOD].seconds

    @property
    def best_way(self) -> str:
        """Of the ways to choose the fastest of those that keep enough, else the one that keeps most."""
        return self._best([way for way in ("auto", ESCALATING, LEARNED) if way in self.figures])

    def _best(self, ways: Sequence[str]) -> str:
        able = [way for way in ways if (self.kept(way) or 0.0) >= self.keep - 0.05]
        if able:
            return min(able, key=self.of_time)
        return max(ways, key=lambda way: self.kept(way) or 0.0)

    def headline(self) -> str:
        """What choosing gives, in a sentence."""
        low, high = (self.figures[mode].accuracy for mode in MODES)
        if high <= low:
            return (
                f"On {len(self.pairs)} tasks, {GOOD} is no better than {CHEAP} ({high:.0%} and "
                f"{low:.0%} right): {CHEAP} is the mode to take."
            )
        way = self.best_way
        return (
            f"On {len(self.pairs)} tasks, {way} keeps {self.kept(way) or 0.0:.0%} of what {GOOD} is "
            f"better by ({low:.0%} to {high:.0%} right) in {self.of_time(way):.0%} of its time."
        )

    def table(self) -> Table:
        """Every way to choose; the best one is bold."""
        table = Table("way", "right", "of the gain", "ms", "of the time", "tokens", f"not {CHEAP}")
        for name, figures in self.figures.items():
            error = math.sqrt(figures.accuracy * (1 - figures.accuracy) / len(self.pairs))
            kept = self.kept(name)
            table.add_row(
                name,
                f"{figures.accuracy:.1%} ± {error:.1%}",
                "-" if kept is None else f"{kept:.0%}",
                f"{1000 * figures.seconds:.0f}",
                f"{self.of_time(name):.0%}",
                f"{figures.tokens:.1f}",
                f"{figures.share_in_better_mode:.0%}",
                style="bold" if name == self.best_way else None,
            )
        table.caption = f"of tasks that the fit did not see ({FOLDS} folds)"
        if self.learned is not None:
            table.caption += (
                f"; {LEARNED} closes {self.learned.closed:.0%} of what is between the built-in weights and an oracle, "
                f"and its chances are off by {self.learned.miscalibrated:.1%}"
            )
        return table

    def settings(self) -> dict[str, Any]:
        """Parts of the settings file: the selector of mode auto, a preset that escalates, and for people the
        figures."""
        figures = {
            name: asdict(one) | {"gain_kept": self.kept(name), "of_its_time": self.of_time(name)}
            for name, one in self.figures.items()
        }
        grading = Counter(pair.task.grading for pair in self.pairs)
        measured = {"tasks": len(self.pairs), "grading": grading, "keep": self.keep}
        router: LinearModeRouter | LearnedModeRouter = self.selector
        if self.learned is not None:
            figures[LEARNED] |= self.learned.record()
            if self._best(("auto", LEARNED)) == LEARNED:
                router = self.learned.router
        parts: dict[str, Any] = {
            "auto": router.model_dump(mode="json"),
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
    """Fit what decides between fast, deep, and deep with a budget. keep: the selector and the threshold are the cheapest that keep this
    share of what deep is better by. minutes: for the answers of both modes; those with a budget come
    after that, in at most half of the time. ValueError: something is out of range, or
    too few tasks were answered. KeyboardInterrupt: before enough was answered."""
    if len(tasks) < FEWEST:
        raise ValueError(f"{len(tasks)} graded tasks are too few: give at least {FEWEST}")
    if not 1 <= batch <= len(tasks):
        raise ValueError(f"batch={batch} is outside 1..{len(tasks)}, the number of tasks")
    order = list(tasks)
    random.Random(0).shuffle(order)  # a file is often sorted by kind
    pairs: list[Pair] = []
    stopped = False
    try:
        pairs.extend(answer_tasks(llm, order, sampling, 60 * minutes, report, batch))
    except KeyboardInterrupt:  # what came before is there
        if len(pairs) < FEWEST:
            raise
        stopped = True
    if len(pairs) < FEWEST:
        raise ValueError(f"{len(pairs)} tasks were answered in time; {FEWEST} are needed")
    found = find(pairs, keep, stopped)
    try:
        if not stopped:
            add_learned(found, llm, sampling, report)
    except KeyboardInterrupt:
        found.stopped = True
    return found


def add_learned(found: ModesFound, llm: LLM, sampling: SamplingParams, report: Report) -> None:
    """Fit a learned router to what was found; the model reads the prompts again, and thinks with a budget about those
    that took longer thoughts."""
    tasks, between = [pair.task for pair in found.pairs], list(MODES)
    sides = [[pair.cheap for pair in found.pairs], [pair.good for pair in found.pairs]]
    thoughts = sorted(answer.thought for answer in sides[1] if answer.thought)
    if thoughts:
        budget = thoughts[len(thoughts) // 2]
        found.brief = Mode(
            base=GOOD, thinking_budget=budget, description=f"{GOOD}, thinks {budget} tokens at most"
        )
        brief = list(sides[1])  # the same as long as the budget does not end a thought
        for n in (longer := [n for n, answer in enumerate(brief) if answer.thought > budget]):
            report(
                longer.index(n) / len(longer),
                f"{longer.index(n)} of {len(longer)} tasks with a budget",
            )
            out = llm.generate(
                [tasks[n].prompt], sampling, mode=found.brief, speculation=PLAIN, progress=False
            )[0]
            brief[n] = _graded(tasks[n], out)
        sides.insert(1, brief)
        between.insert(1, BRIEF)
    answers = Answers(
        np.array([[one.right for one in side] for side in sides]).T,
        np.array([[float(one.tokens) for one in side] for side in sides]).T,
        np.array([[one.seconds for one in side] for side in sides]).T,
        np.array([one.first for one in sides[0]]),
    )
    scores = np.array([BUILT_IN.score(features(situation(task))) for task in tasks])
    layers = llm.model.config.layers
    found.learned = max(
        (
            learn(
                hidden_states(llm, tasks, CHEAP, layer, report),
                *(answers, tuple(between), layer, found.keep, scores),
            )
            for layer in sorted({layers * 3 // 4, layers - 1})
        ),
        key=lambda one: one.closed,
    )
    found.figures[LEARNED] = found.learned.figures
    if thoughts:
        found.figures[BRIEF] = answers.of(np.ones(len(tasks)))


def find(pairs: list[Pair], keep: float, stopped: bool = False) -> ModesFound:
    """What answers that are there say; see `tune_modes`. stopped: some are missing, by Ctrl-C."""
    names = list(LABELS)
    seen = [features(situation(pair.task)) for pair in pairs]
    features_NF = np.array([[one[name] for name in names] for one in seen])
    wanted_N = np.array([pair.gains for pair in pairs])
    outcomes = Outcomes.of_pairs(pairs)
    auto = fitting.judge(features_NF, wanted_N, outcomes, keep)
    fitted = fitting.fit(features_NF, wanted_N, outcomes.counts)
    escalation, escalating = fitting.judge_escalation(pairs, outcomes, keep)
    scores = fitting.held_out_scores(features_NF, wanted_N, outcomes.counts)
    varies = features_NF.std(0) > 1e-9  # where nothing changed, the usual rules hold
    known = [i for i, name in enumerate(names) if varies[i]]
    selector = LinearModeRouter(
        between=MODES,
        weights={names[i]: float(fitted.weights[i]) for i in known}
        | {n: w for n, w in BUILT_IN.weights.items() if n in ("urgency", "load")},
        means={names[i]: float(fitted.means[i]) for i in known},
        bias=fitted.bias,
        threshold=fitting.cheapest(scores, outcomes, outcomes.aim(keep)),
    )
    usual = np.array([BUILT_IN.score(one) > BUILT_IN.threshold for one in seen])
    figures = {CHEAP: outcomes.cheap, GOOD: outcomes.good, "auto": auto, ESCALATING: escalating}
    figures["built-in auto"] = outcomes.of(usual)
    return ModesFound(pairs, keep, figures, selector, escalation, stopped)


def situation(task: Task) -> PromptFacts:
    """What a mode selector would see of a task."""
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
) -> Iterator[Pair]:
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
        yield from map(Pair, some, found[CHEAP], found[GOOD])


def _graded(task: Task, out: Output) -> GradedAnswer:
    metrics = out.metrics
    seconds = metrics.ttft + metrics.tpot * max(0, metrics.tokens - 1)
    logprobs = tuple(table[token] for table, token in zip(out.logprobs or (), out.token_ids))
    counts = metrics.tokens, metrics.ttft, metrics.thinking_tokens
    return GradedAnswer(task.right(out.text), seconds, logprobs, *counts)
