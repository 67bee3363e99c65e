"""The server's end of the connection to one engine process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import (
    Answers,
    Call,
    CallResult,
    Failure,
    FrameReader,
    LeaveAnswer,
    NotLoaded,
    Ready,
    StartAnswer,
    ToEngine,
    ToServer,
    error_of,
    fields_of,
    frame,
    plain,
)

CROWDED = 256  # pieces that wait, from which they are joined
# seconds in which an answer may be new to an engine, where nothing comes of it before its end
NEW = 10.0
ALONE = "the engine crashed as it began this request, and no other one was new there"

_NAMES = tuple(field.name for field in fields(Piece) if field.name not in ("index", "output"))


class EngineCrashed(NotReady):
    """The engine ended by its own fault, and answers that were new there may be the reason. suspects: how many they
    are, where this is one of them; else 0."""

    def __init__(self, message: str, suspects: int) -> None:
        super().__init__(message)
        self.suspects = suspects


class AnswerStream:
    """Between the engine's process, which gives pieces, and the one task that takes them. A reader that is slower than
    the engine gets several pieces as one, so that what waits is never more than the answer's text. streamed: pieces
    come before the end."""

    def __init__(self, streamed: bool = True) -> None:
        self._new_until = time.monotonic() + (NEW if not streamed else float("inf"))
        self._pieces: list[Piece] = []
        self._crowded = CROWDED
        self._over = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def new(self) -> bool:
        """True while its engine may have just begun it."""
        return time.monotonic() < self._new_until

    def put(self, piece: Piece) -> None:
        """A piece has come."""
        self._new_until = 0.0
        self._pieces.append(piece)
        if len(self._pieces) > self._crowded:
            self._pieces = joined(self._pieces)
            self._crowded = len(self._pieces) + CROWDED
        self._news.set()

    def end(self, error: Exception | None = None) -> None:
        """No more pieces come. error: raised after those that wait."""
        self._over, self._error = True, error
        self._news.set()

    async def take(self) -> list[Piece]:
        """All that waits, joined; wait for something. []: that was all. Raises what `end` was given."""
        if not self._pieces and not self._over:
            self._news.clear()
            await self._news.wait()
        pieces, self._pieces, self._crowded = self._pieces, [], CROWDED
        if not pieces and self._error is not None:
            raise self._error
        return joined(pieces)


def joined(pieces: list[Piece]) -> list[Piece]:
    """As few pieces as say the same: those of one answer become one, as long as no thought follows a text."""
    if len(pieces) < 2:
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
    """Sends what is asked, and gives each answer to its caller."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # done when the model is loaded; its exception says why it cannot be
        self.loaded: asyncio.Future[ModelCard] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()  # done when the connection is gone
        self._frames: FrameReader[ToServer] = FrameReader(ToServer)
        self._numbers = itertools.count()
        self._answers: dict[int, AnswerStream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.Transport | None = None
        # what its `Heartbeat` knows: why it gets no requests, the engine's figures, and when they came
        self.why_silent = ""
        self.figures: Mapping[str, Any] = {}
        self.heard = 0.0

    @property
    def answering(self) -> int:
        """Answers that are under way."""
        return len(self._answers)

    def send(self, message: ToEngine) -> None:
        """NotReady: the connection is gone. ValueError: what a client gave cannot be sent."""
        data = frame(message)
        if self._transport is None or self._transport.is_closing():
            raise NotReady("the engine is not there", refused=True)
        self._transport.write(data)

    def ask(self, request: GenerateRequest) -> tuple[int, AnswerStream]:
        """Have a prompt answered; the number is for `leave`."""
        number = next(self._numbers)
        self.send(StartAnswer(number, fields_of(request)))
        answer = self._answers[number] = AnswerStream(request.streamed)
        return number, answer

    def leave(self, number: int) -> None:
        """Nobody reads an answer any more; it ends, unless it is over."""
        if self._answers.pop(number, None) is not None and not self.lost.done():
            self.send(LeaveAnswer(number))

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine and wait for its result. NotReady: the connection is gone, or lost meanwhile."""
        number = next(self._numbers)
        self.send(Call(number, method, plain(arguments)))
        self._calls[number] = result = asyncio.get_running_loop().create_future()
        try:
            return await result
        finally:
            self._calls.pop(number, None)

    def end(self, why: str, crashed: bool = False) -> None:
        """The process is gone, by its own fault where it crashed: all who wait for it hear why."""
        answers, self._answers = self._answers, {}
        new = [answer for answer in answers.values() if crashed and answer.new]
        for answer in answers.values():
            suspects = len(new) if answer in new else 0
            said = ALONE if suspects == 1 else why
            answer.end(EngineCrashed(said, suspects) if new else NotReady(why))
        for result in self._calls.values():
            _settle(result, None, NotReady(why))

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
        _settle(self.lost, None)

    def _take(self, message: ToServer) -> None:
        match message:
            case Answers():
                self._take_answers(message)
            case CallResult():
                if (result := self._calls.get(message.number)) is not None:
                    _settle(result, message.value, _error(message.failure))
            case Ready():
                _settle(self.loaded, message.card)
            case NotLoaded():
                _settle(self.loaded, None, error_of(message.failure))

    def _take_answers(self, message: Answers) -> None:
        for number, piece in message.pieces:
            if (answer := self._answers.get(number)) is not None:
                answer.put(piece)
        for number, failure in message.over:
            if (answer := self._answers.pop(number, None)) is not None:
                answer.end(_error(failure))


def _error(failure: Failure | None) -> Exception | None:
    return None if failure is None else error_of(failure)


def _settle(result: asyncio.Future[Any], value: Any, error: Exception | None = None) -> None:
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
