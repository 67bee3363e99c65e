"""The server's end of the connection to one engine process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

from loguru import logger
from msgspec import to_builtins

from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.engines.process.answer_stream import AnswerStream
from fastslow.serve.engines.process.failures import error_of
from fastslow.serve.engines.process.frames import FrameReader, frame
from fastslow.serve.engines.process.messages import (
    Answers,
    Call,
    CallResult,
    LeaveAnswer,
    NotLoaded,
    Ready,
    StartAnswer,
    ToEngine,
    ToServer,
)


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
            raise NotReady("the engine is not there")
        self._transport.write(data)

    def ask(self, ask: Ask, patience: float) -> tuple[int, AnswerStream]:
        """Have a prompt answered; the number is for `leave`."""
        number = next(self._numbers)
        self.send(StartAnswer(number, as_fields(ask)))
        answer = self._answers[number] = AnswerStream(patience)
        return number, answer

    def leave(self, number: int) -> None:
        """Nobody reads an answer any more; it ends, unless it is over."""
        if self._answers.pop(number, None) is not None and not self.lost.done():
            self.send(LeaveAnswer(number))

    async def call(self, kind: Callable[..., Call], *arguments: Any) -> Any:
        """Send a call and wait for its result.

        Raises:
            NotReady: the connection is gone, or is lost meanwhile.
            ValueError: as the engine says.
        """
        number = next(self._numbers)
        self.send(kind(number, *arguments))
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


def as_fields(ask: Ask) -> Any:
    """An ask as JSON values.

    Raises:
        ValueError: a client's value is nested too deeply.
    """
    try:
        return to_builtins(ask)
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None
