"""The bytes of tokens, as clients see them beside log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable

from fastslow.serve.api.engine import Engine


class TokenTable:
    """Remembers what the engine says of each token; never more than its vocabulary."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, tuple[bytes, bool]] = {}

    async def learn(self, tokens: Iterable[int]) -> None:
        """Ask the engine for those that are not known yet."""
        unknown = list({token for token in tokens if token not in self._known})
        if unknown:
            self._known.update(zip(unknown, await self._engine.token_bytes(unknown)))

    def bytes_of(self, token: int) -> bytes:
        """Of a token that was learned."""
        return self._known[token][0]

    def shows(self, token: int) -> bool:
        """Whether answers show it."""
        return self._known[token][1]

    def text_of(self, token: int) -> str:
        """The same as text; bytes that are no whole character as U+FFFD."""
        return self._known[token][0].decode("utf-8", "replace")
