"""Graded tasks: what is asked, what is right, and how an answer is compared with that."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, get_args

from fastslow.engine.tune.prompts import Conversation, read_prompts

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
