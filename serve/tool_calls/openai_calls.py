"""Calls as OpenAI's chats write them, whole and in deltas."""

from __future__ import annotations

from typing import Any

from fastslow.serve.tool_calls.events import CallBegun, CallMore, Content, Event
from fastslow.serve.tool_calls.parser import ToolParser


class OpenAICalls:
    """The calls in one answer, from its text in any pieces.

    Attributes:
        calls: all so far, as a message's `tool_calls` has them; the last one may be cut off.
    """

    def __init__(self, parser: ToolParser) -> None:
        self._parser = parser
        self._made: list[tuple[CallBegun, list[str]]] = []

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": begun.id,
                "type": "function",
                "function": {"name": begun.name, "arguments": "".join(parts)},
            }
            for begun, parts in self._made
        ]

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Take more text; returns what of it is content, and deltas as a chunk's `tool_calls` has them."""
        return self._told(self._parser.push(text))

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The same of what was held back, at the end of the answer."""
        return self._told(self._parser.finish())

    def _told(self, events: list[Event]) -> tuple[str, list[dict[str, Any]]]:
        content, deltas = [], []
        for event in events:
            match event:
                case Content(text):
                    content.append(text)
                case CallBegun(index, id, name):
                    self._made.append((event, []))
                    function = {"name": name, "arguments": ""}
                    deltas.append(
                        {"index": index, "id": id, "type": "function", "function": function}
                    )
                case CallMore(index, text):
                    self._made[index][1].append(text)
                    deltas.append({"index": index, "function": {"arguments": text}})
        return "".join(content), deltas
