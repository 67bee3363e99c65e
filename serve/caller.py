"""Who asks: what an API key stands for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fastapi import Request

from fastslow.serve.ask import Ask
from fastslow.serve.engine import ModelCard


@dataclass(frozen=True, slots=True)
class Caller:
    """One API key's name and memory."""

    name: str = "anonymous"
    memory_key: str | None = None  # its requests share remembered answers and cached prefixes

    def memory(self, cache_salt: str | None = None) -> str | None:
        """The memory key of a request: the caller's, or one for each of its salts."""
        if cache_salt is None:
            return self.memory_key
        owner = self.memory_key or ""
        return hashlib.sha256(f"{len(owner)} {owner} {cache_salt}".encode()).hexdigest()

    def admit(self, ask: Ask, card: ModelCard) -> Ask:
        """The ask as the caller's limits let it through."""
        return ask


async def caller(request: Request) -> Caller:
    """The dependency of every route that asks the engine."""
    return Caller()
