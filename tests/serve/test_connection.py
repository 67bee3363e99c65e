"""Connections of clients that speak older HTTP, or offer newer, and of those that break off or send rubbish."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serve_tools import served

from fastslow.serve.http.connection import HEAD_BYTES

HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    app = FastAPI()

    @app.post("/body")
    async def body(request: Request) -> dict[str, str]:
        return {"body": (await request.body()).decode(), "host": request.headers["host"]}

    @app.get("/parts")
    async def parts() -> StreamingResponse:
        return StreamingResponse(iter(["one ", "two ", "", "three"]))

    with served(app) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def said(address: tuple[str, int], *parts: bytes) -> tuple[bytes, bytes]:
    """The heads and the body of what a server answers, until it closes the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


OFFERS = {
    "Java": b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "a web socket": b"Connection: close, upgrade\r\nUpgrade: websocket\r\n",
    "two lines": b"Connection: close\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0, h2c\r\n",
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", [0, 20, 9])
def test_a_body_after_an_offer_of_another_protocol_is_read(
    address: tuple[str, int], offer: str, cut: int
) -> None:
    begun = b"POST /body HTTP/1.1\r\n" + HOST + OFFERS[offer]
    whole = begun + b"Content-Length: 11\r\n\r\nhello there"
    head, body = said(address, whole[:-cut], whole[-cut:]) if cut else said(address, whole)
    assert head.startswith(b"http/1.1 200") and body == b'{"body":"hello there","host":"localhost"}'
    chunked = begun + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert said(address, chunked)[1] == b'{"body":"hello","host":"localhost"}'


def test_a_further_request_after_an_offer(address: tuple[str, int]) -> None:
    offer = OFFERS["Java"].replace(b", close", b"")
    first = b"POST /body HTTP/1.1\r\n" + HOST + offer + b"Content-Length: 2\r\n\r\nhi"
    last = b"GET /nothing HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    head, rest = said(address, first + last)
    assert head.startswith(b"http/1.1 200") and b'"body":"hi"' in rest
    assert b"HTTP/1.1 404" in rest


RUBBISH = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST /body HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a length and chunks": b"POST /body HTTP/1.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /body HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "another proxy's": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "endless headers": b"GET / HTTP/1.1\r\nx: " + b"x" * HEAD_BYTES,
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_is_refused_and_the_connection_closed(
    address: tuple[str, int], rubbish: str
) -> None:
    assert said(address, RUBBISH[rubbish])[0].startswith(b"http/1.1 400")
