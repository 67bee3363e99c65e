"""Answers as they come from the engine, whole or as server-sent events, for as long as the client is there."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, ClassVar, TypeVar

import msgspec
from loguru import logger
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastslow.output import Output, Piece
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.api.errors import ApiError, as_api_error, refused
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller, Limits
from fastslow.serve.http.middleware import request_id
from fastslow.serve.observe.request_record import CURRENT, AnswerRecord, tokens_of

T = TypeVar("T")
GONE = 499  # nginx's status for a client that closed its connection
Event = dict[str, Any]
PlacedPiece = tuple[int, Piece]
"""The number of a prompt among several, and a piece of its answer."""
SEPARATORS = "\x85", "\u2028", "\u2029"  # many clients end a line at these, too
PATIENCE = 2.0  # seconds that the engine has to count the tokens of a prompt
COMMENT = ": waiting\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes every event on at once
]
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer, whole or as events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"description": "chunks, one in each event"}},
        },
    }
}
"""`responses` of a route that may stream its answer, for the OpenAPI document."""
_encoder = msgspec.json.Encoder()


class ClientLeft(ApiError):
    """Nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(GONE, "the client closed the connection")


async def all_whole(state: Any, requests: Sequence[GenerateRequest]) -> list[Output]:
    """The answers to several requests, which run side by side; where one fails, all end. ApiError: a request does not
    fit. Busy, NotReady, GenerationError: as `Engine.stream`."""
    pieces = Pieces(state, requests)
    outputs: dict[int, Output] = {}
    try:
        while (bunch := await pieces.take(None)) is not None:
            outputs |= {place: piece.output for place, piece in bunch if piece.output is not None}
    finally:
        await pieces.close()
    if len(outputs) < len(requests):
        raise NotReady("the engine ended before the answer was there")
    return [outputs[place] for place in range(len(requests))]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled where the client leaves. ClientLeft: it did."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        await _end([task, gone])


async def left(receive: Receive) -> None:
    """Return when the client closes its connection; for a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Pieces:
    """The pieces of one answer or several, in bunches: all that came since the last one was taken. A slow reader holds
    up nobody: pieces wait here, never more of them than the answer has tokens. The record of the HTTP request gets an
    `AnswerRecord` for each prompt, and its caller's limits count the tokens. state: of the application."""

    def __init__(self, state: Any, requests: Sequence[GenerateRequest]) -> None:
        self._engine: Engine = state.engine
        self._limits: Limits = state.limits
        self._record = CURRENT.get()
        self._came: list[PlacedPiece] = []
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._left = len(requests)
        pumps = (self._pump(*each) for each in enumerate(requests))
        self._pumps = [asyncio.ensure_future(pump) for pump in pumps]

    async def take(self, seconds: float | None) -> list[PlacedPiece] | None:
        """The next bunch; empty if none came within `seconds`, None after the last one. ApiError: a request does not
        fit; only before the first piece. Busy, NotReady, GenerationError: as `Engine.stream`."""
        if not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        if self._left and self._error is None:
            self._news.clear()
        bunch, self._came = self._came, []
        if not bunch and self._error is not None:
            raise self._error
        return bunch if bunch or self._left else None

    async def close(self) -> None:
        """Cancel what still runs."""
        await _end(self._pumps)

    async def _pump(self, place: int, request: GenerateRequest) -> None:
        answer = AnswerRecord(request.id, request.prompt, time.perf_counter())
        caller, reserved = self._record.caller, 0
        latest: dict[int, float] = {}
        try:
            if caller.limits.tokens_per_minute is not None:
                reserved = self._limits.reserve(caller, request.options, self._engine.card)
            with suppress(NotReady):
                answer.model = self._engine.card.name
            self._record.answers.append(answer)
            async with aclosing(self._engine.stream(request)) as stream:
                async for piece in stream:
                    _note(answer, piece, latest)
                    self._came.append((place, piece))
                    self._news.set()
        except Exception as error:  # noqa: BLE001 - `take` raises it
            kinds = ((Busy, "busy"), (NotReady, "not_ready"), (ValueError, "invalid"))
            answer.failed = next((said for kind, said in kinds if isinstance(error, kind)), "error")
            self._error = self._error or (
                refused(error) if isinstance(error, ValueError) else error
            )
        finally:
            if answer.output is None and answer.failed is None:
                answer.prompt_tokens = await self._prompt_tokens(request)
            self._limits.spend(caller, sum(tokens_of(answer)), reserved)
            self._left -= 1
            self._news.set()

    async def _prompt_tokens(self, request: GenerateRequest) -> int:
        """Of a request whose client left: the engine says them with the end alone."""
        with suppress(Exception):  # it is gone, or hangs
            async with asyncio.timeout(PATIENCE):
                return len(await self._engine.tokenize(request))
        return 0


def _note(answer: AnswerRecord, piece: Piece, latest: dict[int, float]) -> None:
    if piece.token_ids:
        now = time.perf_counter()
        if answer.first is None:
            answer.first = now
        if piece.index in latest:
            answer.gaps.append(now - latest[piece.index])
        latest[piece.index] = answer.last = now
        answer.sent += len(piece.token_ids)
    if piece.output is not None:
        answer.output = piece.output
        if answer.first is None and any(choice.token_ids for choice in piece.output.choices):
            # it was not streamed: the engine says when its first token was there
            answer.last = time.perf_counter()
            waited = min(choice.metrics.ttft for choice in piece.output.choices)
            answer.first = min(answer.started + waited, answer.last)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def dumped(value: Any) -> str:
    """A value as JSON, on one line and without spaces."""
    try:
        made = _encoder.encode(value).decode()
    except OverflowError:  # a client's number of more than 64 bits comes back in the answer
        made = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not made.isascii():
        for separator in SEPARATORS:
            made = made.replace(separator, f"\\u{ord(separator):04x}")
    return made


def event(value: Event) -> str:
    """A server-sent event, with its type as its name if it has one."""
    name = f"event: {value['type']}\n" if "type" in value else ""
    return f"{name}data: {dumped(value)}\n\n"


class Events(ABC):
    """An answer as the events of a protocol."""

    closing: ClassVar[str] = ""  # what stands after them

    def begin(self) -> list[Event]:
        """Return the events before the first piece."""
        return []

    @abstractmethod
    async def write(self, pieces: Sequence[PlacedPiece]) -> list[Event]:
        """Those of a bunch of pieces; none where there is nothing to show of them."""

    def end(self) -> list[Event]:
        """Return the events after the last piece."""
        return []

    @abstractmethod
    def failed(self, error: ApiError) -> Event:
        """An error in the middle of the answer, with which it ends."""


class EventStream(Response):
    """An answer of status 200 that grows while the engine works, in as few writes as keep up with it. The status is
    sent with the first piece, or after some seconds without one: what is wrong with the request is answered with its
    own status until then, and an event later. state: of the application. ids: by which `who` finds it while it runs."""

    def __init__(
        self,
        state: Any,
        requests: Sequence[GenerateRequest],
        events: Events,
        ids: list[str],
        who: Caller,
    ) -> None:
        super().__init__(media_type="text/event-stream")
        self._state, self._requests, self._events = state, requests, events
        self._ids, self._who = ids, who
        self._settings: ServerSettings = state.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = [request.id for request in self._requests]
        running = self._state.requests.running(self._ids, names, self._who)
        with running, suppress(ClientLeft):  # its request was cancelled
            await while_connected(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        pieces = Pieces(self._state, self._requests)
        pause = self._settings.heartbeat
        try:
            bunch = await pieces.take(pause)  # what it raises is answered with its own status
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            events = self._events.begin()
            try:
                while bunch is not None:
                    events += await self._events.write(bunch)
                    if events or not bunch:
                        await self._send(send, "".join(map(event, events)) or COMMENT)
                    events = []
                    bunch = await pieces.take(pause)
                events = self._events.end()
            except TimeoutError:
                raise
            except Exception as error:  # noqa: BLE001 - the status is sent: it becomes an event
                events = [self._events.failed(as_api_error(error, request_id(scope)))]
            await self._send(send, "".join(map(event, events)) + self._events.closing, more=False)
        except TimeoutError:
            seconds = self._settings.write_timeout
            logger.info("request {}: its client took nothing for {} s", request_id(scope), seconds)
        finally:
            await pieces.close()

    async def _send(self, send: Send, text: str, more: bool = True) -> None:
        async with asyncio.timeout(self._settings.write_timeout):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
