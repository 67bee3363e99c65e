"""Server-sent events: an answer as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from loguru import logger
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.errors import ApiError, as_api_error
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.http.answer import ClientLeft, Pieces, PlacedPiece, while_connected
from fastslow.serve.http.request_id import request_id
from fastslow.serve.http.requests import Requests

COMMENT = b": waiting\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes every event on at once
]
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"description": "chunks, one in each event"}}}
    }
}
"""`responses` of a route that may stream its answer, for the OpenAPI document."""


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
        self, engine: Engine, asks: Sequence[Ask], events: Events, settings: ServerSettings
    ) -> None:
        super().__init__(media_type="text/event-stream")
        self._engine, self._asks, self._events = engine, asks, events
        self._settings = settings
        self._registered: tuple[Requests, list[str], Caller] | None = None

    def known_as(self, requests: Requests, ids: list[str], who: Caller) -> EventStream:
        """Let it be found by these ids while it runs."""
        self._registered = requests, ids, who
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._answer(scope, send))
        except ClientLeft:
            pass  # and what it asked for was cancelled

    async def _answer(self, scope: Scope, send: Send) -> None:
        if self._registered is None:
            await self._send_all(scope, send)
            return
        requests, ids, who = self._registered
        with requests.running(ids, [ask.id for ask in self._asks], who):
            await self._send_all(scope, send)

    async def _send_all(self, scope: Scope, send: Send) -> None:
        pieces = Pieces(self._engine, self._asks)
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
