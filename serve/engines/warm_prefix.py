"""What prompts begin with, read before the first request comes."""

from __future__ import annotations

from typing import Any, TypedDict


class WarmPrefix(TypedDict):
    """A system prompt, or messages, that is read once and stays in the prefix cache."""

    name: str  # of the file, for messages
    prompt: list[dict[str, Any]]
    mode: str
