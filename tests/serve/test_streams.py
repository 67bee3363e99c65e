"""Events in the middle of an answer, in every protocol: errors, silence, clients that leave."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine, output
from hypothesis import given
from hypothesis import strategies as st
from loops import within
from pairs import pairwise
from processes_served import wait_for
from protocols import GREEDY
from requests_made import made_request
from serve_tools import events_of, named_events_of, served

from fastslow.output import GenerationError, Piece
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Limits
from fastslow.serve.app import create_app
from fastslow.serve.http.answer import Pieces, dumped, event
from fastslow.serve.observe.request_record import CURRENT, RequestRecord

CHAT: Any = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT}, "/v1/completions": {"prompt": ["a"]},
    "/v1/messages": {"messages": CHAT, "max_tokens": 9}, "/v1/responses": {"input": "hi"},
}  # fmt: skip


class Scripted(FakeEngine):
    """An engine that thinks, says something, and then raises an error or continues without end."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.error: Exception | None = None
        self.silence = 0.0  # seconds before the first piece
        self.late = True
        self.text = " and on"
        self.begun = self.running = 0

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.begun += 1
        self.running += 1
        try:
            await asyncio.sleep(self.silence)
            if self.late:
                yield Piece(reasoning="hm", token_ids=[1])
                yield Piece("so far", token_ids=[2])
            while self.error is None:
                yield Piece(self.text, token_ids=[3])
                await asyncio.sleep(0.001)
            raise self.error
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Scripted]]:
    engine, settings = Scripted(), ServerSettings(heartbeat=0.05, write_timeout=0.5)
    with served(create_app(engine, ServerConfig(settings=settings))) as url:
        yield url, engine


@pytest.fixture
def engine(server: tuple[str, Scripted]) -> Scripted:
    server[1].__init__()  # type: ignore[misc]
    return server[1]


@pytest.fixture
def address(server: tuple[str, Scripted]) -> str:
    return server[0]


def asked(address: str, path: str, body: Mapping[str, Any]) -> socket.socket:
    """A connection that has sent a request."""
    host, port = address.removeprefix("http://").split(":")
    connection, content = socket.create_connection((host, int(port))), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + content)
    return connection


INVALID, LIMITED = "invalid_request_error", "rate_limit_error"
ERRORS: list[tuple[Exception, int, str, str, str]] = [
    (ValueError("top_k=1 is wrong"), 400, INVALID, INVALID, "invalid_prompt"),
    (Busy("the queue is full", 7.2), 429, LIMITED, LIMITED, "rate_limit_exceeded"),
    (NotReady("it starts"), 503, "server_error", "overloaded_error", "server_error"),
    (GenerationError("secret", []), 500, "server_error", "api_error", "server_error"),
    (ZeroDivisionError("secret"), 500, "server_error", "api_error", "server_error"),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("error", "status", "kind", "claude", "gpt"), ERRORS)
def test_what_the_engine_raises(
    address: str, engine: Scripted, path: str, error: Exception, status: int, kind: str, claude: str, gpt: str
) -> None:  # fmt: skip
    engine.error = error
    known = {"x-request-id": "known-1"}
    for stream, late in ((False, False), (True, False), (False, True), (True, True)):
        engine.late = late
        answer = httpx.post(address + path, json={**BODIES[path], "stream": stream}, headers=known)
        assert answer.status_code == (200 if stream and late else status)
        after = {429: "8", 503: "1"}  # whole seconds, as long as the engine says at least
        assert answer.headers.get("retry-after") == after.get(answer.status_code)
        match answer.status_code, path:
            case 200, "/v1/messages":
                *_, last = named_events_of(answer.text)
                assert last["type"] == "error"
            case 200, "/v1/responses":
                *_, end = named_events_of(answer.text)
                last = end["response"]
                assert end["type"] == "response.failed" and last["status"] == "failed"
                assert [one["content"][0]["text"] for one in last["output"]] == ["hm", "so far"]
            case 200, _:
                *_, last = events_of(answer.text)
            case _:
                last = answer.json()
        shown = last["error"]
        if "type" in shown:
            assert shown["type"] == (claude if path == "/v1/messages" else kind)
        else:
            assert shown["code"] == gpt
        message = shown["message"]
        assert ("known-1" in message) is (status == 500) and "secret" not in message
        assert status == 500 or message == str(error)


def test_the_official_clients_raise_what_comes_in_a_stream(address: str, engine: Scripted) -> None:
    import anthropic

    engine.error = Busy("the queue is full")
    seen = []
    with (
        anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as claude,
        pytest.raises(anthropic.APIStatusError, match="the queue is full"),
    ):
        for one in claude.messages.create(model="tiny", max_tokens=9, messages=CHAT, stream=True):
            seen.append(one.type)
    assert seen[0] == "message_start" and seen.count("content_block_start") == 2
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as gpt:
        *_, last = gpt.responses.create(model="tiny", input="hi", stream=True)
    assert last.type == "response.failed" and last.response.error is not None
    assert last.response.error.message == "the queue is full"


@pytest.mark.parametrize(("path", "stream", "silence"), pairwise([*BODIES], [False, True], [0.0, 3600.0]))
def test_who_leaves_cancels(address: str, engine: Scripted, path: str, stream: bool, silence: float) -> None:
    engine.silence = silence
    with asked(address, path, {**BODIES[path], "stream": stream}) as connection:
        wait_for(lambda: engine.begun == 1)
        seen = b""
        while stream and seen.count(b"\n") < 20:
            seen += connection.recv(4096)
        assert stream == (b" 200 OK" in seen)
    wait_for(lambda: engine.running == 0)


@pytest.mark.parametrize(
    ("path", "ping", "first"),
    [("/v1/chat/completions", ": waiting", '"role":"assistant"'), ("/v1/messages", "event: ping", '"input_tokens":3')],
)
def test_a_silent_stream_has_pings(address: str, engine: Scripted, path: str, ping: str, first: str) -> None:
    engine.silence = 3600
    body, seen = {**BODIES[path], "stream": True}, []
    with httpx.stream("POST", address + path, json=body) as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if seen.count(ping) == 3:
                break
    assert any(first in line for line in seen[: seen.index(ping)]), "it comes before the first ping"


@within()
async def test_the_slower_of_two_answers_is_waited_for_without_turns() -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0.2 if request.prompt == "slow" else 0)
        yield Piece(output=output())
        await asyncio.sleep(0.01)  # it ends later than its last piece comes

    requests = [made_request("1", "quick"), made_request("2", "slow")]
    CURRENT.set(RequestRecord("r", "POST", "/", "", 0.0, 0))
    state = SimpleNamespace(engine=FakeEngine(script), limits=Limits())
    pieces, bunches = Pieces(state, requests), 0
    while bunches < 100 and await pieces.take(60) is not None:
        bunches += 1
    assert bunches <= 3


def test_a_client_that_takes_nothing_is_left(address: str, engine: Scripted) -> None:
    engine.text = "x" * 100_000
    with asked(address, "/v1/completions", {"prompt": "a", "stream": True}):
        wait_for(lambda: engine.begun == 1)
        wait_for(lambda: engine.running == 0)


def test_requests_are_ended_by_name(http: httpx.Client) -> None:
    # greedy: by chance the model would open a thought now and then
    body = {"prompt": "The quick", "stream": True, "max_tokens": 480, **GREEDY}
    with http.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "to-be-ended"}) as answer:
        parts = answer.iter_text()
        first = next(parts)
        assert http.post("/v1/requests/to-be-ended/stop_thinking").json()["done"] is False
        assert http.delete("/v1/requests/to-be-ended").json() == {"id": "to-be-ended", "done": True}
        last = events_of("".join([first, *parts]))[-1]
    assert last["metrics"]["finish_reason"] == "cancelled" and last["choices"][0]["finish_reason"] == "length"


@given(st.text())
def test_a_text_is_one_line_of_json(text: str) -> None:
    made = dumped(text)
    assert json.loads(made) == text and len(made.splitlines()) == 1
    assert event({"a": text}) == f'data: {{"a":{made}}}\n\n'
    assert event({"type": "x"}) == 'event: x\ndata: {"type":"x"}\n\n'
    assert json.loads(dumped({"a": 10**30})) == {"a": 10**30}, "a client's number"
