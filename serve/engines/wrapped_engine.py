"""What stands in front of an engine: all that a wrapper does not change goes through."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import Engine, ModelCard


class WrappedEngine:
    """An `Engine` that passes every call on to another one. Wrappers override what they do otherwise.

    Args:
        engine: the other one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def card(self) -> ModelCard:
        return self.engine.card

    @property
    def ready(self) -> bool:
        return self.engine.ready

    @property
    def why_not_ready(self) -> str:
        return self.engine.why_not_ready

    def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        return self.engine.stream(ask)

    async def cancel(self, id: str) -> bool:
        return await self.engine.cancel(id)

    async def stop_thinking(self, id: str) -> bool:
        return await self.engine.stop_thinking(id)

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return await self.engine.trace(id)

    async def stats(self) -> Mapping[str, Any]:
        return await self.engine.stats()

    async def tokenize(self, ask: Ask) -> list[int]:
        return await self.engine.tokenize(ask)

    async def detokenize(self, tokens: list[int]) -> str:
        return await self.engine.detokenize(tokens)

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        return await self.engine.token_bytes(tokens)

    async def close(self, drain: float = 0.0) -> None:
        await self.engine.close(drain)
