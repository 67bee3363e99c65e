"""Prompts to train on: JSON Lines, read with complaints that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Conversation = list[dict[str, Any]]


def read_prompts(path: Path) -> list[Conversation]:
    """One conversation a line, ending with a user's message.

    A line is a JSON object with `prompt` (text), `turns` (texts, the first is taken) or `messages`
    (role and content); other fields are ignored, and so are empty lines.

    Raises:
        ValueError: the first line that is none of these, or a file without prompts.
    """
    found: list[Conversation] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append(_conversation(line, f"{path}, line {number}"))
    if not found:
        raise ValueError(f"data={path} must hold at least 1 prompt, and is empty")
    return found


def _conversation(line: str, where: str) -> Conversation:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if isinstance(record, dict):
        if isinstance(messages := record.get("messages"), list) and messages:
            return messages
        turns = record.get("turns")
        text = turns[0] if isinstance(turns, list) and turns else record.get("prompt")
        if isinstance(text, str) and text:
            return [{"role": "user", "content": text}]
    raise ValueError(f"{where}: must have `prompt`, `turns` or `messages` with some text")
