"""Chunks of a streamed answer, put together from texts: nothing is built or checked for each of them."""

from __future__ import annotations

from typing import Any

from fastslow.serve.http.json_text import dumped

DONE = "data: [DONE]\n\n"


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
