"""Graded tasks answered in two modes, one beside the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastslow.engine.llm import LLM
from fastslow.engine.output import Output
from fastslow.engine.params import SamplingParams
from fastslow.engine.tune.candidates import PLAIN
from fastslow.engine.tune.race import Tell
from fastslow.engine.tune.tasks import Task


@dataclass(frozen=True, slots=True)
class Trial:
    """One answer to a task."""

    right: bool
    seconds: float  # from the call to its last token
    tokens: int
    logprobs: tuple[float, ...] = ()  # of its tokens, where they were asked for
    text: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One task, answered cheaply and well."""

    task: Task
    cheap: Trial
    good: Trial

    @property
    def gains(self) -> bool:
        """Whether the better mode is what it took."""
        return self.good.right and not self.cheap.right


def answer_tasks(
    llm: LLM,
    tasks: Sequence[Task],
    modes: tuple[str, str],
    sampling: SamplingParams,
    seconds: float,
    tell: Tell,
    batch: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Pair], bool]:
    """Answer tasks in both modes until all are done, the time is over, or somebody presses Ctrl-C.

    Plain decoding, so that times tell of modes and not of drafts; the cheap mode gives its tokens'
    log-probabilities, which say how sure it was.

    Args:
        llm: the model.
        tasks: in the order in which they are run.
        modes: names of presets, the cheaper one first.
        sampling: of all answers.
        seconds: of everything.
        tell: hears how it goes.
        batch: requests at a time.
        clock: in seconds.

    Returns:
        The tasks that both modes answered, and whether that was cut short by Ctrl-C.

    Raises:
        KeyboardInterrupt: before any task was answered.
    """
    cheap, good = modes
    unsure = sampling.model_copy(update={"logprobs": 0})
    begun = clock()
    pairs: list[Pair] = []
    llm.generate([tasks[0].prompt], sampling, mode=cheap, speculation=PLAIN, progress=False)
    try:
        for start in range(0, len(tasks), batch):
            gone = (clock() - begun) / seconds
            if start and gone > 1:
                break
            tell(min(1.0, max(gone, start / len(tasks))), f"{start} of {len(tasks)} tasks")
            some = tasks[start : start + batch]
            found = {}
            for mode in (cheap, good) if start // batch % 2 else (good, cheap):
                params = unsure if mode == cheap else sampling
                found[mode] = _answer(llm, some, mode, params)
            pairs += map(Pair, some, found[cheap], found[good])
    except KeyboardInterrupt:
        if not pairs:
            raise
        return pairs, True
    return pairs, False


def _answer(llm: LLM, tasks: Sequence[Task], mode: str, sampling: SamplingParams) -> list[Trial]:
    prompts = [task.prompt for task in tasks]
    outs = llm.generate(prompts, sampling, mode=mode, speculation=PLAIN, progress=False)
    return [_trial(task, out) for task, out in zip(tasks, outs, strict=True)]


def _trial(task: Task, out: Output) -> Trial:
    metrics = out.metrics
    seconds = metrics.ttft + metrics.tpot * max(0, metrics.tokens - 1)
    said = zip(out.logprobs or (), out.token_ids)
    logprobs = tuple(table[token] for table, token in said)
    return Trial(task.right(out.text), seconds, metrics.tokens, logprobs, out.text)
