"""Files that say what prompts begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastslow.engine.params import shown

LARGEST = 4 * 2**20  # bytes


def read_warm(path: Path) -> list[dict[str, Any]]:
    """The messages of a file: JSON in OpenAI's form, or the text of a system prompt, without the line break
    that editors put at its end.

    Raises:
        ValueError: one sentence about what does not fit.
    """
    text = _text(path)
    if path.suffix != ".json":
        if not text.strip():
            raise ValueError(f"--warm {shown(str(path))} is empty")
        return [{"role": "system", "content": text.removesuffix("\n")}]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--warm {shown(str(path))} is not JSON: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else found
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)):
        raise ValueError(
            f"--warm {shown(str(path))} must hold a list of messages, or an object with `messages`"
        )
    return messages


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:  # a UnicodeError is one, too
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--warm {shown(str(path))} cannot be read: {reason}") from None
