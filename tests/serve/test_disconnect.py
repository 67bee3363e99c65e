"""Who leaves cancels what was asked, wherever it is; who reads slowly holds up nobody."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from serve_tools import events_of, served

from fastslow.output import Piece
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.http.app import create_app

CHAT = [{"role": "user", "content": "hi"}]
KIND = {"content-type": "application/json"}


class Endless:
    """An engine whose answers have no end; it counts those that run."""

    card = ModelCard("m", 0, 99, {"deep": {}}, "", 0, thinks=False, has_head=False)

    def __init__(self) -> None:
        self.running = self.begun = 0
        self.first = 3600.0  # seconds until the first piece
        self.text = "x"

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.running += 1
        self.begun += 1
        try:
            await asyncio.sleep(self.first)
            while True:
                yield Piece(self.text, token_ids=[1])
                await asyncio.sleep(0.001)
        finally:
            self.running -= 1


@pytest.fixture
def engine() -> Endless:
    return Endless()


@pytest.fixture
def endless(engine: Endless) -> Iterator[str]:
    settings = ServerSettings(heartbeat=0.05, write_timeout=0.5)
    with served(create_app(engine, ServerConfig(settings=settings))) as url:  # type: ignore[arg-type]
        yield url


def until(ready: Any) -> None:
    for _ in range(1000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits(
    endless: str, engine: Endless, path: str, stream: bool
) -> None:
    body: dict[str, Any] = {"messages": CHAT} if "chat" in path else {"prompt": ["a", "b"]}
    body |= {"stream": stream}
    with (
        pytest.raises(httpx.TimeoutException),
        httpx.stream("POST", endless + path, json=body, timeout=0.3) as answer,
    ):
        for line in answer.iter_lines():
            assert stream and not line.startswith('data: {"error')
            if engine.begun and line == ": waiting":
                raise httpx.ReadTimeout("seen enough")
    until(lambda: engine.begun >= 1 and engine.running == 0)


def test_a_client_that_leaves_in_the_middle(endless: str, engine: Endless) -> None:
    engine.first = 0.0
    body = {"prompt": "a", "stream": True}
    with httpx.stream("POST", f"{endless}/v1/completions", json=body) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 20:
                break
    until(lambda: engine.begun == 1 and engine.running == 0)


def test_a_silent_stream_has_comments(endless: str, engine: Endless) -> None:
    body = {"messages": CHAT, "stream": True}
    seen = []
    with httpx.stream("POST", f"{endless}/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if seen.count(": waiting") == 2:
                break
    assert '"role":"assistant"' in seen[0], "the role comes before the first comment"


def test_a_client_that_takes_nothing_is_left(endless: str, engine: Endless) -> None:
    engine.first, engine.text = 0.0, "x" * 100_000
    host, port = endless.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        body = b'{"prompt": "a", "stream": true}'
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        until(lambda: engine.begun == 1)
        until(lambda: engine.running == 0)


def test_requests_are_ended_by_name(http: httpx.Client) -> None:
    # greedy: by chance the model would open a thought now and then
    body = {"prompt": "The quick", "stream": True, "max_tokens": 480, "ignore_eos": True}
    body |= {"temperature": 0}
    named = {"x-request-id": "to-be-ended"}
    with http.stream("POST", "/v1/completions", json=body, headers=named) as answer:
        parts = answer.iter_text()
        first = next(parts)
        assert http.post("/v1/requests/to-be-ended/stop_thinking").json()["done"] is False
        ended = http.delete("/v1/requests/to-be-ended")
        assert ended.json() == {"id": "to-be-ended", "done": True}
        last = events_of("".join([first, *parts]))[-1]
    assert last["metrics"]["finish_reason"] == "cancelled"
    assert last["choices"][0]["finish_reason"] == "length"
