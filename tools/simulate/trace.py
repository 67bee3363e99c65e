"""A trace: which requests came when, what they shared, and, if they were recorded, how long they took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from fastslow.engine.params import nearest, shown

MOST_LINES = 5_000_000
ALL = "all"  # what figures of all modes are called; no mode has this name
MOST_BYTES = 64 * 2**20  # of a line
MOST_TOKENS = 10_000_000  # of a prompt or an answer
MOST_PIECES = 100_000  # of a prompt's beginning
MOST_SECONDS = 1e9
LATENCY_MS = 0.001, 1e9
LONGEST_NAME = 200

Pieces = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of a trace.

    Attributes:
        arrival: seconds from the trace's own zero.
        mode: the name of its mode.
        prompt_tokens, answer_tokens: how long both are.
        id: its name; later prompts that go on from it begin with the pieces of its own prompt, and then
            with a piece of this name.
        deep: whether it thinks.
        prefix: pieces that its prompt begins with, each (name, tokens). Requests of one mode and memory key
            share keys and values as far as their pieces are the same.
        max_tokens: the most that it may answer; 0 = not known.
        latency_ms: its target; None = it has none.
        tokens_per_step: that it got from a step; None = what is usual for its mode.
        rows_per_step: its last token and drafted ones; None = what is usual for its mode.
        priority: requests with a smaller number go first.
        memory_key: whose cached prefixes it shares.
        first_seconds, end_seconds: from its arrival to its first token and to its end, as measured.
        cached_tokens: of its prompt, found in a cache, as measured.
        replica: that answered it.
    """

    arrival: float
    mode: str
    prompt_tokens: int
    answer_tokens: int
    id: str = ""
    deep: bool = False
    prefix: Pieces = ()
    max_tokens: int = 0
    latency_ms: float | None = None
    tokens_per_step: float | None = None
    rows_per_step: float | None = None
    priority: int = 0
    memory_key: str = ""
    first_seconds: float | None = None
    end_seconds: float | None = None
    cached_tokens: int | None = None
    replica: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without what is as usual."""
        every = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        record = {name: value for name, (value, usual) in every.items() if value != usual}
        if self.prefix:
            record["prefix"] = [list(piece) for piece in self.prefix]
        return record

    @classmethod
    def from_dict(cls, values: object) -> TracedRequest:
        """What `to_dict` gave.

        Raises:
            ValueError: one sentence with the field, its value and the limit.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a line is an object, not {shown(values)}")
        for name in values:
            if name not in CHECKS:
                raise ValueError(f"field {shown(name)} is unknown{nearest(str(name), CHECKS)}")
        for name in ("arrival", "mode", "prompt_tokens", "answer_tokens"):
            if name not in values:
                raise ValueError(f"field {name!r} is missing")
        made = cls(**{name: CHECKS[name](name, value) for name, value in values.items()})
        if made.mode == ALL:
            raise ValueError(
                f"mode={ALL!r} is what the figures of all modes are called: name it otherwise"
            )
        if (begun := sum(tokens for _, tokens in made.prefix)) > made.prompt_tokens:
            raise ValueError(
                f"prefix has {begun} tokens, more than prompt_tokens={made.prompt_tokens}"
            )
        return made


def read_trace(path: Path) -> list[TracedRequest]:
    """The requests of a file of JSON lines, by arrival; those without an id are numbered.

    Raises:
        ValueError: it cannot be read, or a line is wrong; one sentence with the line's number.
    """
    return sorted(with_ids(_requests(path, json_lines(path))), key=lambda request: request.arrival)


def write_trace(path: Path, requests: Iterable[TracedRequest]) -> None:
    """Write JSON lines that `read_trace` reads."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            file.write(json.dumps(request.to_dict()) + "\n")


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """The numbers and values of a file's lines, without empty ones.

    Raises:
        ValueError: it cannot be read, or a line is no JSON.
    """
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(MOST_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                if number > MOST_LINES:
                    raise ValueError(f"{path} has more than {MOST_LINES:,} lines")
                if len(line) > MOST_BYTES:
                    raise ValueError(f"{path}, line {number}: longer than {MOST_BYTES:,} bytes")
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(f"{path}, line {number}: no JSON: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def with_ids(requests: Iterable[TracedRequest]) -> Iterator[TracedRequest]:
    """The requests, those without an id numbered.

    Raises:
        ValueError: an id comes twice.
    """
    seen: set[str] = set()
    numbers = count(1)
    for request in requests:
        if not request.id:
            request = replace(request, id=f"#{next(numbers)}")
        if request.id in seen:
            raise ValueError(f"id={shown(request.id)} stands for two requests of the trace")
        seen.add(request.id)
        yield request


def _requests(path: Path, lines: Iterable[tuple[int, object]]) -> Iterator[TracedRequest]:
    found = False
    for number, values in lines:
        try:
            yield TracedRequest.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        found = True
    if not found:
        raise ValueError(f"{path} has no request")


def _number(least: float, most: float) -> Any:
    def check(name: str, value: object) -> float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not (real and least <= value <= most):  # type: ignore[operator]  # nor nan
            raise ValueError(
                f"{name}={shown(value)} must be a number between {least:g} and {most:g}"
            )
        return float(value)  # type: ignore[arg-type]

    return check


def _whole(least: int, most: int) -> Any:
    def check(name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(
                f"{name}={shown(value)} must be a whole number between {least} and {most}"
            )
        return value

    return check


def _or_none(check: Any) -> Any:
    return lambda name, value: None if value is None else check(name, value)


def _name(least: int) -> Any:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or not least <= len(value) <= LONGEST_NAME:
            raise ValueError(
                f"{name}={shown(value)} must be a text of {least} to {LONGEST_NAME} characters"
            )
        return value

    return check


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)} must be true or false")
    return value


def _pieces(name: str, value: object) -> Pieces:
    if not isinstance(value, list) or len(value) > MOST_PIECES:
        raise ValueError(f"{name} must be a list of at most {MOST_PIECES} pieces")
    found = []
    for piece in value:
        if not isinstance(piece, list) or len(piece) != 2:
            raise ValueError(f"{name}: {shown(piece)} must be a pair of name and tokens")
        label, tokens = piece
        found.append(
            (_name(1)(f"{name}: name", label), _whole(1, MOST_TOKENS)(f"{name}: tokens", tokens))
        )
    return tuple(found)


CHECKS: dict[str, Any] = {
    "arrival": _number(0, MOST_SECONDS),
    "mode": _name(1),
    "prompt_tokens": _whole(1, MOST_TOKENS),
    "answer_tokens": _whole(1, MOST_TOKENS),
    "id": _name(0),
    "deep": _flag,
    "prefix": _pieces,
    "max_tokens": _whole(0, MOST_TOKENS),
    "latency_ms": _or_none(_number(*LATENCY_MS)),
    "tokens_per_step": _or_none(_number(1, 1000)),
    "rows_per_step": _or_none(_number(1, 1000)),
    "priority": _whole(-1000, 1000),
    "memory_key": _name(0),
    "first_seconds": _or_none(_number(0, MOST_SECONDS)),
    "end_seconds": _or_none(_number(0, MOST_SECONDS)),
    "cached_tokens": _or_none(_whole(0, MOST_TOKENS)),
    "replica": _name(0),
}
