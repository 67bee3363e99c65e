"""Where tools join a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fastslow.serve.ask import Ask
from fastslow.serve.engine import ModelCard


class CallParser(Protocol):
    """Finds the tool calls in one answer, from its text in any pieces."""

    calls: list[dict[str, Any]]
    """Whole calls so far, as a message's `tool_calls` has them."""

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """More text. Returns what of it is content, and deltas as a chunk's `tool_calls` has them."""

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The same of what was held back, at the end of the answer."""


Parsers = Callable[[], CallParser]
"""Makes the parser of one answer."""


def prepare(
    ask: Ask, tools: list[dict[str, Any]] | None, tool_choice: Any, parallel: bool, card: ModelCard
) -> tuple[Ask, Parsers | None]:
    """The ask with its tools, and what reads the answers; None: no calls are looked for.

    Raises:
        ValueError: tools are not there yet.
    """
    if tools:
        raise ValueError("tools are not supported yet")
    if tool_choice not in (None, "none", "auto"):
        raise ValueError("tool_choice must be left out unless tools are given")
    return ask, None
