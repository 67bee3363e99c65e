"""What happens in the middle of an answer in /v1/messages and /v1/responses: errors, silence, clients that leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from serve_tools import named_events_of, served

from fastslow.output import GenerationError, Piece
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.engine import Busy, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.keys import KeyRing, add_key
from fastslow.serve.http.app import create_app

CHAT: Any = [{"role": "user", "content": "hi"}]
BODIES = {"/v1/messages": {"messages": CHAT, "max_tokens": 9}, "/v1/responses": {"input": "hi"}}


class Scripted:
    """An engine that thinks, says something, and then raises an error or goes on without end."""

    card = ModelCard("m", 0, 99, {"deep": {}}, "", 0, thinks=True, has_head=False)
    ready, why_not_ready = True, ""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.silence = 0.0  # seconds before the first piece
        self.late = True
        self.begun = self.running = 0

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.begun += 1
        self.running += 1
        try:
            await asyncio.sleep(self.silence)
            if self.late:
                yield Piece(reasoning="hm", token_ids=[1])
                yield Piece("so far", token_ids=[2])
            while self.error is None:
                yield Piece(" and on", token_ids=[3])
                await asyncio.sleep(0.001)
            raise self.error
        finally:
            self.running -= 1

    async def tokenize(self, ask: GenerateRequest) -> list[int]:
        return [1, 2, 3]


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def address(engine: Scripted) -> Iterator[str]:
    settings = ServerSettings(heartbeat=0.05)
    with served(create_app(engine, ServerConfig(settings=settings))) as url:  # type: ignore[arg-type]
        yield url


def until(ready: Any) -> None:
    for _ in range(1000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


ERRORS = [
    (ValueError("top_k=1 is wrong"), 400, "invalid_request_error", "invalid_prompt"),
    (Busy("the queue is full"), 429, "rate_limit_error", "rate_limit_exceeded"),
    (NotReady("it starts"), 503, "overloaded_error", "server_error"),
    (GenerationError("secret", []), 500, "api_error", "server_error"),
    (ZeroDivisionError("secret"), 500, "api_error", "server_error"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), ERRORS)
def test_errors_in_a_stream_and_before_it(
    address: str, engine: Scripted, error: Exception, status: int, kind: str, code: str
) -> None:
    engine.error = error
    with httpx.Client(base_url=address) as http:
        for path, body in BODIES.items():
            engine.late = True
            streamed = http.post(path, json={**body, "stream": True})
            assert streamed.status_code == 200
            *_, last = named_events_of(streamed.text)
            if path == "/v1/messages":
                assert last["type"] == "error" and last["error"]["type"] == kind
                said = last["error"]["message"]
            else:
                assert last["type"] == "response.failed"
                response = last["response"]
                assert response["status"] == "failed" and response["error"]["code"] == code
                items = [item["content"][0]["text"] for item in response["output"]]
                assert items == ["hm", "so far"]
                said = response["error"]["message"]
            assert "secret" not in said and (status == 500 or said == str(error))
            for stream in (False, True):
                engine.late = False
                answer = http.post(path, json={**body, "stream": stream})
                assert answer.status_code == status
                told = answer.json()["error"]
                assert "secret" not in told["message"]
                assert (answer.headers.get("retry-after") is not None) is (status in (429, 503))
                if path == "/v1/messages":
                    assert answer.json()["type"] == "error" and told["type"] == kind


def test_the_official_clients_raise_what_comes_in_a_stream(address: str, engine: Scripted) -> None:
    engine.error = Busy("the queue is full")
    seen = []
    with (
        anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as claude,
        pytest.raises(anthropic.APIStatusError, match="the queue is full"),
    ):
        for event in claude.messages.create(model="m", max_tokens=9, messages=CHAT, stream=True):
            seen.append(event.type)
    assert seen[0] == "message_start" and seen.count("content_block_start") == 2
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as gpt:
        *_, last = gpt.responses.create(model="m", input="hi", stream=True)
    assert last.type == "response.failed" and last.response.error is not None
    assert last.response.error.message == "the queue is full"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("silence", [0.0, 3600.0])
def test_who_leaves_cancels(
    address: str, engine: Scripted, path: str, stream: bool, silence: float
) -> None:
    engine.silence = silence
    with (
        httpx.Client(base_url=address, timeout=0.3) as client,
        pytest.raises(httpx.TimeoutException),
        client.stream("POST", path, json={**BODIES[path], "stream": stream}) as answer,
    ):
        for number, _ in enumerate(answer.iter_lines()):
            assert stream
            if number == 20:
                raise httpx.ReadTimeout("seen enough")
    until(lambda: engine.begun == 1 and engine.running == 0)


def test_a_silent_stream_has_pings(address: str, engine: Scripted) -> None:
    engine.silence = 3600
    body = {**BODIES["/v1/messages"], "stream": True}
    seen = []
    with (
        httpx.Client(base_url=address) as client,
        client.stream("POST", "/v1/messages", json=body) as answer,
    ):
        for line in answer.iter_lines():
            seen.append(line)
            if seen.count("event: ping") == 3:
                break
    assert seen[0] == "event: message_start" and '"input_tokens":3' in seen[1]


def test_keys_are_sent_as_either_client_does(tmp_path: Path, engine: Scripted) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "bot")
    app = create_app(engine, keys=KeyRing(path))  # type: ignore[arg-type]
    with served(app) as url:
        with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as claude:
            assert claude.messages.count_tokens(model="m", messages=CHAT).input_tokens == 3
        with (
            anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as claude,
            pytest.raises(anthropic.AuthenticationError, match="authentication_error"),
        ):
            claude.messages.count_tokens(model="m", messages=CHAT)
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as gpt,
            pytest.raises(openai.AuthenticationError),
        ):
            gpt.responses.create(model="m", input="hi")
