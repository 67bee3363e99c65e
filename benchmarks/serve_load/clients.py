"""Clients of a server that cost little themselves: raw connections that look at few bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TAIL = 64 * 1024  # bytes of an answer's end that are kept
WAIT = 120.0  # seconds after which a request hangs


@dataclass(slots=True)
class Reply:
    """The outcome of a request."""

    status: int = 0
    whole: bool = False  # its stream came to its end
    error: str = ""  # the body, of a status other than 200


class Stream(asyncio.Protocol):
    """A request on a connection of its own."""

    def __init__(self, request: bytes) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reply = Reply()
        self._request = request
        self._tail = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.reply.status:
            self.reply.status = int(data[9:12])
        self._tail += data
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]
        self.reply.whole |= b"data: [DONE]" in self._tail[-len(data) - 16 :]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.reply.status != 200:
            self.reply.error = self._tail[-2000:].decode(errors="replace")
        if not self.over.done():
            self.over.set_result(None)


def request_of(body: Mapping[str, Any]) -> bytes:
    """A request as bytes; the server closes the connection after its answer."""
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def chat(prompt: str, tokens: int, **fields: Any) -> dict[str, Any]:
    """The body of a streamed chat with an answer of `tokens`."""
    return {
        "model": "measured",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        **fields,
    }


async def ask(address: str, body: Mapping[str, Any], source: str = "") -> Reply:
    """Send a request and read its answer. source: the address that it comes from. TimeoutError: it hangs."""
    loop, where = asyncio.get_running_loop(), urlsplit(address)
    assert where.hostname is not None and where.port is not None
    transport, stream = await loop.create_connection(
        lambda: Stream(request_of(body)),
        where.hostname,
        where.port,
        local_addr=(source, 0) if source else None,
    )
    try:
        await asyncio.wait_for(stream.over, WAIT)
    finally:
        transport.abort()  # where nobody waits any more
    return stream.reply
