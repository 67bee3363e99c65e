"""The pieces of one answer that its reader has not taken yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fastslow.output import GenerationError, Piece

UNREAD = 60.0  # seconds after which an answer that nobody reads is cut
CROWDED = 256  # pieces that wait, from which they are joined

_NAMES = tuple(field.name for field in fields(Piece) if field.name not in ("index", "output"))


class AnswerStream:
    """Between the engine's process, which gives pieces, and the one task that takes them.

    A reader that is slower than the engine gets several pieces as one, so that what waits is never more than
    the answer's text. One that takes nothing for a long time is cut.

    Args:
        patience: seconds that pieces may wait while more come.
    """

    def __init__(self, patience: float = UNREAD) -> None:
        self._patience = patience
        self._pieces: list[Piece] = []
        self._crowded = CROWDED
        self._since = 0.0  # when the oldest piece that waits came
        self._over = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, piece: Piece) -> bool:
        """A piece has come. False: its reader was cut, and no more need come."""
        if self._over:
            return False
        if not self._pieces:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > self._patience:
            self._pieces = []
            said = f"nothing of the answer was read for {self._patience:g} s, so it was cut"
            self.end(GenerationError(said, []))
            return False
        self._pieces.append(piece)
        if len(self._pieces) > self._crowded:
            self._pieces = joined(self._pieces)
            self._crowded = len(self._pieces) + CROWDED
        self._wake()
        return True

    def end(self, error: Exception | None = None) -> None:
        """No more pieces come. error: raised behind those that wait."""
        if not self._over:
            self._over, self._error = True, error
            self._wake()

    async def take(self) -> list[Piece]:
        """All that waits, joined; wait for something. []: that was all.

        Raises:
            Exception: what `end` was given.
        """
        while not self._pieces and not self._over:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._pieces:
            pieces, self._pieces, self._crowded = self._pieces, [], CROWDED
            return joined(pieces)
        if self._error is not None:
            raise self._error
        return []

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def joined(pieces: list[Piece]) -> list[Piece]:
    """As few pieces as say the same: those of one answer become one, as long as no thought follows a text."""
    if len(pieces) == 1:
        return pieces
    groups: list[list[Piece]] = []
    latest: dict[int, list[Piece]] = {}  # by index
    for piece in pieces:
        group = latest.get(piece.index)
        whole = piece.output is not None or (group is not None and group[-1].output is not None)
        if group is None or whole or (piece.reasoning and any(before.text for before in group)):
            latest[piece.index] = [piece]
            groups.append(latest[piece.index])
        else:
            group.append(piece)
    return [group[0] if len(group) == 1 else _join(group) for group in groups]


def _join(pieces: list[Piece]) -> Piece:
    together = {name: _sum(getattr(piece, name) for piece in pieces) for name in _NAMES}
    return Piece(index=pieces[0].index, **together)


def _sum(values: Iterable[Any]) -> Any:
    """Texts and lists behind each other; of anything else the latest."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    if isinstance(there[0], str):
        return "".join(there)
    if isinstance(there[0], list):
        return [part for value in there for part in value]
    return there[-1]
