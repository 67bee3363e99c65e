"""Graded tasks: what is asked, what is right, and what two modes answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, get_args

from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.prompts import Conversation, read_prompts
from fastslow.tools.tune.race import Tell

Grading = Literal["exact", "number", "contains"]
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")
WORDS = 6  # an answer of no more is looked for in what is said


@dataclass(frozen=True, slots=True)
class Task:
    """One graded task.

    Attributes:
        prompt: what is asked.
        answer: what is right.
        grading: exact: the whole text is the answer, case, blanks and a final stop aside; number: the
            last number said is the last one of the answer; contains: the answer is somewhere in it.
    """

    prompt: Conversation
    answer: str
    grading: Grading

    def right(self, text: str) -> bool:
        """Whether an answer is right."""
        if self.grading == "number":
            said = last_number(text)
            return said is not None and said == last_number(self.answer)
        said_words, right_words = _plain(text), _plain(self.answer)
        return said_words == right_words if self.grading == "exact" else right_words in said_words


def read_tasks(path: Path, limit: int | None = None, grading: Grading | None = None) -> list[Task]:
    """Graded tasks of a file of JSON lines, each with "answer", one of the fields that prompts files
    have ("prompt", "question", "messages", "turns") and, if it likes, "grading".

    Args:
        path: the file.
        limit: take so many, spread evenly over the file; None = all.
        grading: of lines that do not say; None: by number if the answer is or ends with a number
            (GSM8K's "#### 12"), contains if it is a few words, exact if it is longer.

    Raises:
        ValueError: the file cannot be read, is empty, or has a bad line (its number is told).
    """
    prompts = read_prompts(path)
    lines = [
        (number, json.loads(line))
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1)
        if line.strip()
    ]
    tasks = []
    for prompt, (number, record) in zip(prompts, lines, strict=True):
        try:
            tasks.append(_task(prompt, record, grading))
        except ValueError as error:
            raise ValueError(f"tasks file {str(path)!r}, line {number}: {error}") from error
    if limit is None or limit >= len(tasks):
        return tasks
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    return [tasks[i * len(tasks) // limit] for i in range(limit)]


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without its thousands' commas; None if there is none."""
    found = NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None


def _task(prompt: Conversation, record: dict[str, Any], grading: Grading | None) -> Task:
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("answer must be a number, or a text that is not empty")
    own = record.get("grading", grading) or _usual(answer)
    if own not in get_args(Grading):
        raise ValueError(f"grading={own!r} must be one of {', '.join(get_args(Grading))}")
    if own == "number" and last_number(answer) is None:
        raise ValueError(f"answer={answer!r} has no number to grade by")
    return Task(prompt, answer, own)


def _usual(answer: str) -> Grading:
    if "####" in answer or NUMBER.fullmatch(answer.strip()):
        return "number"
    return "contains" if len(answer.split()) <= WORDS else "exact"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!")


@dataclass(frozen=True, slots=True)
class GradedTrial:
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
    cheap: GradedTrial
    good: GradedTrial

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


def _answer(
    llm: LLM, tasks: Sequence[Task], mode: str, sampling: SamplingParams
) -> list[GradedTrial]:
    prompts = [task.prompt for task in tasks]
    outs = llm.generate(prompts, sampling, mode=mode, speculation=PLAIN, progress=False)
    return [_trial(task, out) for task, out in zip(tasks, outs, strict=True)]


def _trial(task: Task, out: Output) -> GradedTrial:
    metrics = out.metrics
    seconds = metrics.ttft + metrics.tpot * max(0, metrics.tokens - 1)
    said = zip(out.logprobs or (), out.token_ids)
    logprobs = tuple(table[token] for table, token in said)
    return GradedTrial(task.right(out.text), seconds, metrics.tokens, logprobs, out.text)
