"""Chunks of a streamed answer, put together from texts: nothing is built or checked for each of them."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any

SEPARATORS = "\x85", "\u2028", "\u2029"  # many clients end a line at these, too
DONE = "data: [DONE]\n\n"


def quoted(text: str) -> str:
    """A text as JSON, on one line."""
    return _on_one_line(encode_basestring(text))


def dumped(value: Any) -> str:
    """A value as JSON, on one line and without spaces."""
    return _on_one_line(
        json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    )


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {dumped(value)}\n\n"


class ChunkFrame:
    """What all chunks of an answer have in common.

    Args:
        object: OpenAI's name of the kind of chunk.
        with_usage: all chunks have a field `usage`, which is null until the last one.
    """

    def __init__(self, id: str, object: str, created: int, model: str, with_usage: bool) -> None:
        fields = {"id": id, "object": object, "created": created, "model": model}
        self._head = "data: " + dumped(fields)[:-1] + ',"choices":['
        self._tail = "]" + (',"usage":null' if with_usage else "") + "}\n\n"
        self._bare = self._tail[: self._tail.index("}")]

    def chunk(self, choice: str) -> str:
        """One with a choice, which is JSON already."""
        return self._head + choice + self._tail

    def last(self, choice: str, **more: Any) -> str:
        """One with further fields."""
        return f"{self._head}{choice}{self._bare},{dumped(more)[1:]}\n\n"

    def usage(self, usage: dict[str, Any]) -> str:
        """The one that has the usage, and no choice."""
        return f'{self._head}],"usage":{dumped(usage)}}}\n\n'


def _on_one_line(made: str) -> str:
    if not made.isascii():
        for separator in SEPARATORS:
            made = made.replace(separator, f"\\u{ord(separator):04x}")
    return made
