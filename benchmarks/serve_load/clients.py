"""Clients of a server that cost little themselves: raw connections that look at few bytes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TAIL = 64 * 1024  # bytes of an answer's end that are kept
WAIT = 120.0  # seconds after which a request hangs
TOPICS = ("the sea", "old maps", "bread", "a lighthouse", "bees", "rivers", "clocks", "snow")


@dataclass(slots=True)
class Reply:
    """What came of a request. Seconds are from its first byte sent."""

    status: int = 0
    first: float = 0.0  # to the first event with a token
    seconds: float = 0.0
    waited: float = 0.0  # to the first token, as the engine says
    tokens: int = 0
    text: str = ""
    thought: str = ""
    ids: list[int] = field(default_factory=list)  # where the request asked for them
    decision: str = ""  # what the engine tells of how the answer came about
    finish: str | None = None
    whole: bool = False  # it came to its end
    error: str = ""  # of an event; of a status other than 200 the body


class Stream(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()
        self.reply = Reply()
        self._request = request
        self._tail = bytearray()
        self._begin = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._begin = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        reply = self.reply
        if not reply.status:
            reply.status = int(data[9:12])
        # a chunk without a token, which has the role, comes early where the answer waits
        if not reply.first and data.count(b"data: ") > data.count(b'"role":'):
            reply.first = time.perf_counter() - self._begin
        self._tail += data
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]
        if b"data: [DONE]" in self._tail[-len(data) - 16 :]:
            reply.whole = True
            reply.seconds = time.perf_counter() - self._begin

    def connection_lost(self, exc: Exception | None) -> None:
        if self.reply.status == 200:
            self._read_end()
        else:
            self.reply.error = self._tail[-2000:].decode(errors="replace")
        if not self.over.done():
            self.over.set_result(None)

    def _read_end(self) -> None:
        """What the answer says, and why it ended, or failed."""
        head, _, body = bytes(self._tail).partition(b"\r\n\r\n")
        if b"application/json" in head:
            self._note(json.loads(body))
            self.reply.whole = True
            self.reply.seconds = time.perf_counter() - self._begin
            return
        for line in bytes(self._tail).split(b"\n"):
            if not line.startswith(b"data: {") or not line.rstrip().endswith(b"}"):
                continue  # a chunk's length, or the first line, of which the beginning is gone
            try:
                event = json.loads(line[6:])
            except ValueError:
                continue  # a line in two chunks, of which the client left the second
            self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        reply = self.reply
        if event.get("error"):
            reply.error = event["error"]["message"]
        if metrics := event.get("metrics"):
            reply.waited, reply.decision = metrics["ttft"], metrics["decision"]
        if usage := event.get("usage"):
            reply.tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            reply.finish = choice.get("finish_reason") or reply.finish
            delta = choice.get("delta") or choice.get("message") or {}
            reply.text += delta.get("content") or ""
            reply.thought += delta.get("reasoning_content") or ""
            reply.ids += delta.get("token_ids") or ()


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
        "stream_options": {"include_usage": True},
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
