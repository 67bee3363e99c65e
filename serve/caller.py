"""Who asks: what an API key stands for."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """One API key's name and memory."""

    name: str = "anonymous"
    memory_key: str | None = None  # its requests share remembered answers and cached prefixes


async def caller(request: Request) -> Caller:
    """The dependency of every route that asks the engine."""
    return Caller()
