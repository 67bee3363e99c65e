"""Connections of clients that speak older HTTP, or offer newer, and of those that break off or send rubbish."""

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import Mock

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from loops import within
from serve_tools import served
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from fastslow.serve.http.client_connection import HEAD_BYTES, Connection
from fastslow.serve.http.client_places import ClientPlaces

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


def test_who_has_many_connections_gives_up_unused_ones(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "places", ClientPlaces(8))
    get = b"GET /parts HTTP/1.1\r\n" + HOST + b"\r\n"
    with ExitStack() as stack:

        def connected(source: str) -> socket.socket:
            return stack.enter_context(socket.create_connection(address, 10, (source, 0)))

        modest = connected("127.0.0.1")
        greedy = [connected("127.0.0.2") for _ in range(40)]
        begun = b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\nx"
        greedy[-1].sendall(begun)  # as little in use as one on which nothing was sent
        for one in (modest, connected("127.0.0.3"), connected("127.0.0.4"), modest):
            one.sendall(get)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                more = one.recv(9999)
                assert more, "others closed it out"
                answer += more
        assert greedy[0].recv(1) == b"", "the oldest unused one is closed"
        greedy[-1].sendall(b"12345678")
        assert greedy[-1].recv(100).startswith(b"HTTP/1.1 200"), "the newest are kept"


def test_connections_in_use_are_not_closed() -> None:
    """An address has at most three places in four, and then only its own unused ones make room."""
    places, closed = ClientPlaces(8), list[Mock]()

    def entered(share: str) -> Mock:
        def close() -> None:
            closed.append(made)
            places.leave(share, made)

        made = Mock()
        places.enter(share, made, close)
        return made

    used = [entered("a") for _ in range(6)]
    for one in used[1:]:
        places.unused.pop("a", one)
    other = entered("b")
    entered("a")
    assert closed == [used[0]]
    places.unused.pop("a", used.pop(0))  # of one that is gone nothing is left
    newest = entered("a")
    assert closed[-1] is not newest and other not in closed


OFFERS = {
    "Java": b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "a web socket": b"Connection: close, upgrade\r\nUpgrade: websocket\r\n",
    "two lines": b"Connection: close\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0, h2c\r\n",
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", [0, 20, 9])
def test_a_body_after_an_offer_of_another_protocol_is_read(address: tuple[str, int], offer: str, cut: int) -> None:
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
    assert head.startswith(b"http/1.1 200") and b'"body":"hi"' in rest and b"HTTP/1.1 404" in rest


RUBBISH = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST /body HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a length and chunks": b"POST /body HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a body that is packed": b"POST /body HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "the same in two lines": b"POST /body HTTP/1.1\r\nTransfer-Encoding: gzip\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /body HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "another proxy's": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "endless headers": b"GET / HTTP/1.1\r\nx: " + b"x" * HEAD_BYTES,
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_is_refused_and_the_connection_closed(address: tuple[str, int], rubbish: str) -> None:
    assert said(address, RUBBISH[rubbish])[0].startswith(b"http/1.1 400")


def test_wrong_codings_are_told_and_piped_requests_have_answers_in_turn(address: tuple[str, int]) -> None:
    _, body = said(address, RUBBISH["a body that is packed"])
    assert body == b"Transfer-Encoding must be chunked, and nothing else."
    plain = b"POST /body HTTP/1.1\r\nConnection: close\r\n" + HOST
    chunked = plain + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    assert said(address, chunked)[1] == b'{"body":"hi","host":"localhost"}'
    bodies = [b"%04d" % n * (1 + n % 97 * 40) for n in range(200)]  # many are longer than a slice
    sent = [b"POST /body HTTP/1.1\r\n%sContent-Length: %d\r\n" % (HOST, len(b)) for b in bodies]
    sent[-1] += b"Connection: close\r\n"
    _, answers = said(address, b"".join([head + b"\r\n" + body for head, body in zip(sent, bodies)]))
    assert re.findall(rb'"body":"(\d+)"', answers) == bodies


async def empty(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@within()
async def test_few_requests_are_read_ahead() -> None:
    """Requests that wait for their turn wait as bytes, and no more of these come."""
    config = uvicorn.Config(empty, http=Connection, lifespan="off", log_config=None)
    config.load()
    connection, transport = Connection(config, ServerState(), {}), Mock(asyncio.Transport)
    transport.get_extra_info.return_value = None
    transport.is_closing.return_value = False
    connection.connection_made(transport)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n" * 2000)
    most = len(connection.pipeline)
    while transport.write.call_count < 4000:  # a head and a body each
        await asyncio.sleep(0)
        most = max(most, len(connection.pipeline))
    await asyncio.sleep(0)
    connection.connection_lost(None)
    written = b"".join(call.args[0] for call in transport.write.call_args_list)
    assert most < 100 and written.count(b"HTTP/1.1 204") == 2000
    reading = [call[0] for call in transport.method_calls if call[0].endswith("_reading")]
    assert reading == ["pause_reading", "resume_reading"], "all that came is answered first"
