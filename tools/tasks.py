"""Graded tasks: what is asked, and what is right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from fastslow.tools.prompts import Conversation, Record, conversation, read_lines, spread

Grading = Literal["exact", "number", "contains"]
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")
WORDS = 6  # an answer of no more is looked for in what is said


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, and what is right.

    Grading exact: the whole text is the answer, case, blanks and a final stop aside; number: the last
    number said is the last one of the answer; contains: the answer is somewhere in it.
    """

    prompt: Conversation
    answer: str
    grading: Grading

    def right(self, text: str) -> bool:
        """Whether an answer is right."""
        if self.grading == "number":
            number = last_number(text)
            return number is not None and number == last_number(self.answer)
        given, wanted = _plain(text), _plain(self.answer)
        return given == wanted if self.grading == "exact" else wanted in given


def read_tasks(path: Path, limit: int | None = None, grading: str | None = None) -> list[Task]:
    """Graded tasks of a file of JSON lines, each with "answer", one of the fields that prompts files
    have ("prompt", "question", "messages", "turns") and, if it likes, "grading".

    limit: see `read_prompts`. grading: of lines that have none; None: by number if the answer is or ends
    with a number (GSM8K's "#### 12"), contains if it is a few words, exact if it is longer. ValueError:
    the file cannot be read, is empty, or has a bad line, whose number is given; an unknown grading.
    """
    if grading is not None:
        _check_grading(grading)
    tasks = read_lines(path, "tasks", partial(_task, usual=grading))
    return spread(list(tasks), limit, path)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without its thousands' commas; None if there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _task(record: Record, usual: str | None) -> Task:
    prompt, answer = conversation(record), record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("answer must be a number, or a text that is not empty")
    grading = _check_grading(record.get("grading", usual) or _fitting(answer))
    if grading == "number" and last_number(answer) is None:
        raise ValueError(f"answer={answer!r} has no number to grade by")
    return Task(prompt, answer, grading)


def _check_grading(name: str) -> Grading:
    if name not in get_args(Grading):
        raise ValueError(f"grading={name!r} must be one of {', '.join(get_args(Grading))}")
    return name  # type: ignore[return-value]


def _fitting(answer: str) -> Grading:
    if "####" in answer or NUMBER.fullmatch(answer.strip()):
        return "number"
    return "contains" if len(answer.split()) <= WORDS else "exact"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!")
