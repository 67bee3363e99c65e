"""The user's own prompts: a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslow.engine.text.templates import Message, check_messages

Conversation = list[Message]
FIELDS = ("messages", "prompt", "turns", "question")


def read_prompts(path: Path, limit: int | None = None) -> list[Conversation]:
    """Conversations to answer, in the order of the file; empty lines are passed over.

    Args:
        path: one JSON object a line, with one of: "messages" (a conversation), "prompt" or
            "question" (what a user says), "turns" (a list of that; the first is asked).
        limit: take so many spread evenly over the file, which may be sorted by kind; None = all.

    Raises:
        ValueError: the file cannot be read, is empty, or has a bad line (its number is told).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines would cut at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts file {str(path)!r} cannot be read: {error}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(_conversation(line))
            except ValueError as error:
                raise ValueError(f"prompts file {str(path)!r}, line {number}: {error}") from error
    if not prompts:
        raise ValueError(f"prompts file {str(path)!r} has no prompt")
    if limit is None or limit >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def _conversation(line: str) -> Conversation:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError("no JSON that can be read: it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
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
