"""The server's end of the connection to one engine process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, cast

from loguru import logger

from fastslow.output import GenerationError, Piece
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import (
    Answers,
    Call,
    CallResult,
    FrameReader,
    LeaveAnswer,
    NotLoaded,
    Ready,
    StartAnswer,
    ToEngine,
    ToServer,
    error_of,
    frame,
)

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
        """No more pieces come. error: raised after those that wait."""
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
    """Texts and lists joined; of anything else the latest."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    if isinstance(there[0], str):
        return "".join(there)
    if isinstance(there[0], list):
        return [part for value in there for part in value]
    return there[-1]


class EngineConnection(asyncio.Protocol):
    """Sends what is asked, and gives each answer to who asked.

    Attributes:
        loaded: done when the model is; its exception says why it cannot be.
        lost: done when the connection is gone.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[ModelCard] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._frames: FrameReader[ToServer] = FrameReader(ToServer)
        self._numbers = itertools.count()
        self._answers: dict[int, AnswerStream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.Transport | None = None

    @property
    def answering(self) -> int:
        """Answers that are under way."""
        return len(self._answers)

    def send(self, message: ToEngine) -> None:
        """Raises:
        NotReady: the connection is gone.
        ValueError: what a client gave cannot be sent.
        """
        data = frame(message)
        if self._transport is None or self._transport.is_closing():
            raise NotReady("the engine is not there", refused=True)
        self._transport.write(data)

    def ask(self, ask: GenerateRequest, patience: float) -> tuple[int, AnswerStream]:
        """Have a prompt answered; the number is for `leave`."""
        number = next(self._numbers)
        self.send(StartAnswer(number, ask.to_fields()))
        answer = self._answers[number] = AnswerStream(patience)
        return number, answer

    def leave(self, number: int) -> None:
        """Nobody reads an answer any more; it ends, unless it is over."""
        if self._answers.pop(number, None) is not None and not self.lost.done():
            self.send(LeaveAnswer(number))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine and wait for its result.

        Raises:
            NotReady: the connection is gone, or is lost meanwhile.
            ValueError: as the engine says.
        """
        number = next(self._numbers)
        given = [_plain(argument) for argument in arguments]
        self.send(Call(number, method, given))
        self._calls[number] = result = asyncio.get_running_loop().create_future()
        try:
            return await result
        finally:
            self._calls.pop(number, None)

    def end(self, why: str) -> None:
        """The process is gone: all who wait for it hear why."""
        answers, self._answers = self._answers, {}
        calls, self._calls = self._calls, {}
        for answer in answers.values():
            answer.end(NotReady(why))
        for result in calls.values():
            if not result.done():
                result.set_exception(NotReady(why))

    def close(self) -> None:
        """Close the connection, on which the process ends."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._frames.feed(data)
        except ValueError as error:  # the process broke while it wrote, or is of another version
            logger.error("the engine's process sent something else than messages: {}", error)
            self.close()
            return
        for message in messages:
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def _take(self, message: ToServer) -> None:
        match message:
            case Answers():
                self._take_answers(message)
            case CallResult():
                result = self._calls.get(message.number)
                if result is not None and not result.done():
                    if message.failure is None:
                        result.set_result(message.value)
                    else:
                        result.set_exception(error_of(message.failure))
            case Ready():
                if not self.loaded.done():
                    self.loaded.set_result(message.card)
            case NotLoaded():
                if not self.loaded.done():
                    self.loaded.set_exception(error_of(message.failure))

    def _take_answers(self, message: Answers) -> None:
        for number, piece in message.pieces:
            answer = self._answers.get(number)
            if answer is not None and not answer.put(piece):
                self.leave(number)
        for number, failure in message.over:
            answer = self._answers.pop(number, None)
            if answer is not None:
                answer.end(None if failure is None else error_of(failure))


def _plain(argument: Any) -> Any:
    return argument.to_fields() if isinstance(argument, GenerateRequest) else argument
