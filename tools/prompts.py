"""Files of JSON Lines, and the prompts and graded tasks that a user keeps in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from fastslow.engine.host.progress import bar
from fastslow.engine.text.messages import Turn, check_messages

T = TypeVar("T")
Record = Mapping[str, Any]
Conversation = list[Turn]
FIELDS = ("messages", "prompt", "turns", "question")
Grading = Literal["exact", "number", "contains"]
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")
WORDS = 6  # an answer of no more is looked for in what is said


def read_lines(path: Path, kind: str, parse: Callable[[Record], T]) -> Iterator[T]:
    """Yield what `parse` makes of each JSON object of a file, one a line; empty lines are skipped. kind: what it
    holds, for messages: "prompts". ValueError, which names file and line, for what does not fit."""
    for place, line in text_lines(path, kind):
        with naming(place):
            parsed = parse(json_object(line))
        yield parsed


def text_lines(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, each with its place for messages: file and line. ValueError:
    the file cannot be read."""
    where = f"{kind} file {str(path)!r}"
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    for number, line in enumerate(bar(lines, f"Reading {kind}"), 1):
        if line.strip():
            yield f"{where}, line {number}", line


@contextmanager
def naming(place: str) -> Iterator[None]:
    """A ValueError from inside says where it was."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def json_object(line: str) -> Record:
    """The JSON object that a line holds; ValueError if it is none."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError("no JSON that can be read: it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
    if "\\ud" in line.lower():  # half a pair, which is no character
        check_text(json.dumps(record, ensure_ascii=False), "the object")
    return record


def check_text(text: str, where: str) -> str:
    """The text. ValueError for bytes that are no UTF-8, which Python hands on as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} is no text in UTF-8: see its character {error.start + 1}"
        ) from None
    return text


def read_prompts(path: Path, limit: int | None = None) -> list[Conversation]:
    """The conversations of a file, one JSON object a line: see `conversation`. limit: how many to take, spread evenly
    over the file; None = all. ValueError: the file cannot be read, is empty, or has a bad line, whose number is
    given."""
    return spread(list(read_lines(path, "prompts", conversation)), limit, path)


def spread(items: list[T], limit: int | None, path: Path) -> list[T]:
    """At most `limit` of a file's items, evenly from first to last; ValueError if that leaves none."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if not items:
        raise ValueError(f"prompts file {str(path)!r} has no prompt")
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def conversation(record: Record) -> Conversation:
    """The messages of one object with one of these fields: "messages" (a conversation), "prompt" or
    "question" (what a user says), "turns" (a list of that; the first is asked)."""
    field = next((name for name in FIELDS if name in record), None)
    if field is None:
        raise ValueError(f"it has none of the fields {', '.join(FIELDS)}")
    value: Any = record[field]
    if field == "messages":
        if not isinstance(value, list):
            raise ValueError(f"messages must be a list, not {type(value).__name__}")
        check_messages(value)
        return value
    if field == "turns":
        if not isinstance(value, list) or not value:
            raise ValueError("turns must be a list with at least one text")
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be a text that is not empty")
    return [{"role": "user", "content": value}]


@dataclass(frozen=True, slots=True)
class Task:
    """A question with its right answer. Grading exact: the whole text is the answer, case, blanks and a final stop
    aside; number: the last number said is the last one of the answer; contains: the answer is somewhere in it."""

    prompt: Conversation
    answer: str
    grading: Grading

    def right(self, text: str) -> bool:
        """Tell whether an answer is right."""
        if self.grading == "number":
            number = last_number(text)
            return number is not None and number == last_number(self.answer)
        given, wanted = _plain(text), _plain(self.answer)
        return given == wanted if self.grading == "exact" else wanted in given


def read_tasks(path: Path, limit: int | None = None) -> list[Task]:
    """Graded tasks of a file of JSON lines, each with "answer", one of the fields that prompts files have ("prompt",
    "question", "messages", "turns") and, if it likes, "grading": else by number if the answer is or ends with a number
    (GSM8K's "#### 12"), contains if it is a few words, exact if it is longer.

    limit: see `read_prompts`. ValueError: the file cannot be read, is empty, or has a bad line, whose number is given.
    """
    return spread(list(read_lines(path, "tasks", _task)), limit, path)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without its thousands' commas; None if there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _task(record: Record) -> Task:
    prompt, answer = conversation(record), record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("answer must be a number, or a text that is not empty")
    grading = record.get("grading") or _fitting(answer)
    if grading not in get_args(Grading):
        raise ValueError(f"grading={grading!r} must be one of {', '.join(get_args(Grading))}")
    if grading == "number" and last_number(answer) is None:
        raise ValueError(f"answer={answer!r} has no number to grade by")
    return Task(prompt, answer, grading)


def _fitting(answer: str) -> Grading:
    if "####" in answer or NUMBER.fullmatch(answer.strip()):
        return "number"
    return "contains" if len(answer.split()) <= WORDS else "exact"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!")
