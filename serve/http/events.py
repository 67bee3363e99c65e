"""Server-sent events: an answer as it is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from loguru import logger
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastslow.serve.api.caller import Caller
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.errors import ApiError, as_api_error
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.http.answer import ClientLeft, Pieces, PlacedPiece, while_connected
from fastslow.serve.http.middleware import request_id

SEPARATORS = "\x85", "\u2028", "\u2029"  # many clients end a line at these, too
COMMENT = b": waiting\n\n"
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


def dumped(value: Any) -> str:
    """A value as JSON, on one line and without spaces."""
    try:
        made = _encoder.encode(value).decode()
    except OverflowError:  # a client's number of more than 64 bits comes back in the answer
        made = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not made.isascii():
        for separator in SEPARATORS:
            made = made.replace(separator, f"\\u{ord(separator):04x}")
    return made


def event(value: Any, name: str = "") -> str:
    """A server-sent event, with or without a name."""
    return f"event: {name}\ndata: {dumped(value)}\n\n" if name else f"data: {dumped(value)}\n\n"


class Events(Protocol):
    """How a protocol writes an answer as events."""

    def begin(self) -> str:
        """What comes before the first piece."""

    async def write(self, pieces: Sequence[PlacedPiece]) -> str:
        """A bunch of pieces; "" where there is nothing to show of them."""

    def end(self) -> str:
        """What comes after the last one."""

    def failed(self, error: ApiError) -> str:
        """An error in the middle of the answer, with which it ends."""


class EventStream(Response):
    """An answer of status 200 that goes on while the engine works, in as few writes as keep up with it.

    The status is sent with the first piece, or after some seconds without one: what is wrong with the
    request is an answer of its own until then, and an event later.
    """

    def __init__(
        self,
        state: Any,
        asks: Sequence[GenerateRequest],
        events: Events,
        ids: list[str],
        who: Caller,
    ) -> None:
        """`state`: of the application. `ids`: by which `who` finds it while it runs."""
        super().__init__(media_type="text/event-stream")
        self._state, self._asks, self._events = state, asks, events
        self._ids, self._who = ids, who
        self._settings: ServerSettings = state.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = [ask.id for ask in self._asks]
        running = self._state.requests.running(self._ids, names, self._who)
        with running, suppress(ClientLeft):  # what it asked for was cancelled
            await while_connected(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        pieces = Pieces(self._state.engine, self._asks)
        pause = self._settings.heartbeat
        try:
            bunch = await pieces.take(pause)  # what it raises is answered with its own status
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            text = self._events.begin()
            try:
                while bunch is not None:
                    text += await self._events.write(bunch)
                    if text or not bunch:
                        await self._send(send, text.encode() or COMMENT)
                    text = ""
                    bunch = await pieces.take(pause)
                text = self._events.end()
            except TimeoutError:
                raise
            except Exception as error:  # noqa: BLE001 - the status is sent: it becomes an event
                text = self._events.failed(as_api_error(error, request_id(scope)))
            await self._send(send, text.encode(), more=False)
        except TimeoutError:
            seconds = self._settings.write_timeout
            logger.info("request {}: its client took nothing for {} s", request_id(scope), seconds)
        finally:
            await pieces.close()

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self._settings.write_timeout):
            await send({"type": "http.response.body", "body": data, "more_body": more})
