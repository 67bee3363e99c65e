"""A client's connection, within limits that uvicorn does not set."""

from __future__ import annotations

import asyncio
from typing import Any

from loguru import logger
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024  # of a request's first line and headers
HEAD_SECONDS = 30.0  # in which they must have come
WRITE_SECONDS = 60.0  # in which a client must take something of what waits for it


class Connection(HttpToolsProtocol):
    """One that sends its headers without end, or takes nothing of its answer, is closed.

    A closed connection ends the request that was answered on it.
    """

    write_seconds = WRITE_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0  # bytes of a head that has not ended; None: in a body
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._head_timer)
        self._stop(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers have more than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:  # of a further request on this connection
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop(self._head_timer)
        self._head_timer, self._head = None, None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self._cut)

    def resume_writing(self) -> None:
        self._stop(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _cut(self) -> None:
        logger.warning(
            "a client took nothing of its answer for {:g} s: its connection is closed",
            self.write_seconds,
        )
        self.transport.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
