"""A client's connection, within limits that uvicorn does not set."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
from loguru import logger
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fastslow.serve.api.limits import network_of
from fastslow.serve.http.client_places import ClientPlaces

HEAD_BYTES = 64 * 1024  # of a request's first line and headers
HEAD_SECONDS = 30.0  # in which they must have come
WRITE_SECONDS = 60.0  # in which a client must take something of what waits for it
SLICE = 1024  # bytes that are parsed at a time: some 60 of the shortest requests
UPGRADE = frozenset({b"upgrade", b"http2-settings"})  # headers that offer another protocol
CODING = b"transfer-encoding"


class Connection(HttpToolsProtocol):
    """A client's connection, closed where headers have no end or an answer is not taken. Once closed, it ends the
    request that was answered on it. A client that offers another protocol, such as Java's with HTTP/2, is answered
    as if it had not. Of requests that are sent before the answer to the first one, few are read ahead."""

    write_seconds = WRITE_SECONDS
    places = ClientPlaces()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0  # bytes of a head that has not ended; None: in a body
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._data = b""  # that the parser has
        self._unread = b""  # that it gets once no request waits for its turn
        self._offers = False  # another protocol, in the head that was read
        self._refusal = ""  # what is wrong with the head that was read

    @property
    def is_ahead(self) -> bool:
        """True while requests wait for the answer to the one before them."""
        return bool(self.pipeline or self._unread)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = InTurn(transport, self)
        self._await_head()
        self._share = network_of(self.client[0]) if self.client else None
        self.places.enter(self._share, self, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.leave(self._share, self)
        self._stop(self._head_timer)
        self._stop(self._write_timer)
        self._unread = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        data, self._unread = self._unread + data, b""
        for start in range(0, len(data), SLICE):
            if self.transport.is_closing():
                return
            if self.pipeline:
                self._unread = data[start:]
                self.flow.pause_reading()
                return
            self._parse(data[start : start + SLICE])

    def _parse(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        self._data = data
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers have more than {HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(self._refusal or msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:  # of a further request on this connection
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop(self._head_timer)
        self._head_timer, self._head = None, None
        coding = [value.strip().lower() for name, value in self.headers if name == CODING]
        if coding not in ([], [b"chunked"]):  # others may read another body than we do
            self._refusal = "Transfer-Encoding must be chunked, and nothing else."
            raise ValueError(self._refusal)  # the parser stops
        self._offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._offers:
            return
        super().on_message_complete()
        self._head = 0
        if not self.cycle.response_complete:
            self.places.unused.pop(self._share, self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else a further request is answered now
            self.places.unused.put(self._share, self, self.transport.close)
        if self.flow.read_paused:
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Parse what waits for its turn, and then what comes."""
        self.data_received(b"")
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self._cut)

    def resume_writing(self) -> None:
        self._stop(self._write_timer)
        self._write_timer = None
        super().resume_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Read the request again without its offer: after one the parser takes no body."""
        ended = sys.exc_info()[1]
        if not (self._offers and isinstance(ended, httptools.HttpParserUpgrade)):
            return
        lines = [b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(v for v in value.split(b",") if v.strip().lower() not in UPGRADE)
            if name not in UPGRADE:
                lines.append(b"%s: %s\r\n" % (name, value))
        rest = self._data[ended.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"".join([*lines, b"\r\n", rest]))

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if self.is_ahead:  # the client may have sent the rest
            self._await_head()
        elif not self.transport.is_closing():
            self.transport.close()

    def _cut(self) -> None:
        said = "a client took nothing of its answer for {:g} s: its connection is closed"
        logger.warning(said, self.write_seconds)
        self.transport.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class InTurn(FlowControl):
    """Reads no more of a connection while requests wait on it."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if not self._connection.is_ahead:
            super().resume_reading()
