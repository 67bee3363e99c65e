"""Clients of a server that cost little themselves: raw connections that look at few bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT = 120.0  # seconds after which a request hangs


@dataclass(slots=True)
class Reply:
    """The outcome of a request. status: 0 where the connection broke."""

    status: int = 0
    whole: bool = False  # its stream came to its end
    error: str = ""  # the body, of a status other than 200


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
    where = urlsplit(address)
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=local)
    try:
        writer.write(request_of(body))
        answer = await asyncio.wait_for(reader.read(), WAIT)
    except ConnectionError:
        return Reply()
    finally:
        writer.transport.abort()  # where nobody waits any more
    status = int(answer[9:12] or 0)
    error = "" if status == 200 else answer[-2000:].decode(errors="replace")
    return Reply(status, b"data: [DONE]" in answer[-64:], error)
