"""The ways in docs/architecture.md are those that a call of `generate()` and a streamed chat really take."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import httpx
import pytest
from msgspec import to_builtins
from request_way import Asked, RequestWay, file_of, profiled

from fastslow import LLM, Piece, SamplingParams
from fastslow.engine.backends.cpu import library
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app
from fastslow.serve.engines.process.child import EngineServer
from fastslow.serve.engines.process.child_process import ChildProcess
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.engines.process.connection import EngineConnection
from fastslow.serve.engines.process.messages import Start
from fastslow.serve.engines.settings import EngineSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
CALL, CHAT = "## One call", "## A streamed chat"
CALL_ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", re.MULTILINE)
CHAT_ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `([\w/.]+)` \| `([\w.]+)` \|", re.MULTILINE)
MOST_WORDS = 1700
MOST_CALL_HOPS, MOST_CALL_FORMS = 11, 2
MOST_CHAT_HOPS, MOST_CHAT_FORMS = 28, 6
QUESTION = "What is 3 + 4?"
SEED = 918_273  # by which a request is known in all of its forms


class Called(NamedTuple):
    """A call of a function of ours, by another function of ours or none."""

    file: str
    function: str
    caller: str  # the file that calls, "" where it is not ours


def section(name: str) -> str:
    return PAGE.read_text("utf-8").partition(f"{name}\n")[2].partition("\n## ")[0]


def test_the_page_is_short() -> None:
    text = re.sub(r"```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    words = re.sub(r"^\| \d+ \|.*$", "", text, flags=re.MULTILINE).split()  # without the hops
    assert len(words) <= MOST_WORDS


@pytest.fixture(scope="module")
def generated() -> tuple[list[Called], RequestWay]:
    """The functions that a call of `generate()` calls, and its way."""
    called: list[Called] = []
    ways: list[RequestWay] = []

    def note(frame: FrameType, event: str, value: Any) -> None:
        for way in ways:
            way.note(frame, event, value)
            if event == "call" and (file := file_of(frame)):
                called.append(Called(file, frame.f_code.co_qualname, file_of(frame.f_back)))

    with profiled(note), LLM("abacus", progress=False) as llm:
        llm.generate("1 + 1 =", SamplingParams(max_tokens=1))
        ways.append(RequestWay(Asked(QUESTION, llm.tokenize(QUESTION), SEED, "LLM.generate")))
        llm.generate(QUESTION, SamplingParams(max_tokens=8, seed=SEED))
        return called, ways.pop()


@pytest.mark.skipif(not library.available(), reason="one hop is the kernels' decoder")
def test_a_call_takes_these_hops_in_this_order(generated: tuple[list[Called], RequestWay]) -> None:
    numbers, *way = zip(*CALL_ROW.findall(section(CALL)))
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    assert 5 <= len(numbers) <= MOST_CALL_HOPS
    places = [(one.file, one.function) for one in generated[0]]
    first = {hop: places.index(hop) for hop in zip(*way)}
    assert list(first.values()) == sorted(first.values()), sorted(first, key=first.__getitem__)


def test_a_call_changes_files_as_seldom(generated: tuple[list[Called], RequestWay]) -> None:
    assert 5 <= len(generated[1].hops) <= MOST_CALL_HOPS, generated[1].hops
    assert generated[1].forms == {"Request", "RequestGroup"}


def test_building_a_request_goes_one_way(generated: tuple[list[Called], RequestWay]) -> None:
    """Until the engine has the requests, no file calls into a file that it is imported by."""
    called = generated[0]
    submitted = [one.function for one in called].index("Worker.submit")
    imported = {
        path.relative_to(ROOT).as_posix(): set(
            re.findall(r"^from fastslow\.([\w.]+) import", path.read_text("utf-8"), re.MULTILINE)
        )
        for path in (ROOT / "fastslow/request").glob("*.py")
    }
    names = {file: file.removeprefix("fastslow/").removesuffix(".py").replace("/", ".") for file in imported}
    inner = [one for one in called[:submitted] if one.file in names and one.caller in names]
    steps = {(one.caller, one.file) for one in inner if one.caller != one.file}
    assert ("fastslow/request/group.py", "fastslow/request/builder.py") in steps
    assert not [(a, b) for a, b in steps if names[a] in imported[b]]


def never_exits(code: int) -> None:
    """The engine's end would take the tests along, which then look as if all had passed."""
    raise RuntimeError(f"the engine ended its process, with {code}")


class NoProcess(ChildProcess):
    """The engine's end of the connection in this process, where its calls can be followed."""

    def __init__(self, connection: EngineConnection) -> None:
        self.connection = connection

    @classmethod
    async def start(cls, settings: EngineSettings) -> NoProcess:
        loop, (ours, its) = asyncio.get_running_loop(), socket.socketpair()
        for end in (ours, its):
            end.setblocking(False)
        await loop.create_unix_connection(EngineServer, sock=its)
        _, connection = await loop.create_unix_connection(EngineConnection, sock=ours)
        connection.send(Start(to_builtins(settings)))
        return cls(connection)

    async def end(self, grace: float = 0.0) -> None:
        self.connection.close()


def way_of_a_chat(patch: pytest.MonkeyPatch) -> RequestWay:
    """Ask for a streamed chat over HTTP, with client and engine in this process, and follow it."""
    patch.setattr(ChildProcess, "start", NoProcess.start)
    patch.setattr(os, "_exit", never_exits)
    ways: list[RequestWay] = []

    def note(frame: FrameType, event: str, value: Any) -> None:
        for way in ways:
            way.note(frame, event, value)

    async def chat() -> RequestWay:
        client = EngineClient(EngineSettings("abacus", "abacus", {"progress": False, "kv_memory": "16MiB"}))
        await client.start()
        transport = httpx.ASGITransport(create_app(client))
        messages = [{"role": "user", "content": QUESTION}]
        tokens = await client.tokenize(GenerateRequest("count", messages))
        ways.append(RequestWay(Asked(QUESTION, tokens, SEED, "chat_completions")))
        asked = {"messages": messages, "stream": True, "seed": SEED, "max_tokens": 8}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            answer = await web.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200 and "data: [DONE]" in answer.text
        way = ways.pop()
        await client.close()
        return way

    with profiled(note):
        return asyncio.run(chat())


@pytest.fixture(scope="module")
def chatted() -> RequestWay:
    with pytest.MonkeyPatch.context() as patch:
        return way_of_a_chat(patch)


def test_a_streamed_chat_takes_these_hops(chatted: RequestWay) -> None:
    rows = CHAT_ROW.findall(section(CHAT))
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    assert {tuple(hop) for _, *hop in rows} == set(chatted.hops), chatted.hops
    assert 5 <= len(chatted.hops) <= MOST_CHAT_HOPS


def test_a_streamed_chat_has_these_forms(chatted: RequestWay) -> None:
    forms, parts = re.findall(r"^The request has .*?\.$", section(CHAT), re.MULTILINE | re.DOTALL)[0].split(". ")
    assert set(re.findall(r"`(\w+)`", forms)) == chatted.forms
    assert set(re.findall(r"`(\w+)`", parts)) == chatted.parts
    assert 3 <= len(chatted.forms) <= MOST_CHAT_FORMS


class Held(NamedTuple):
    """A further form."""

    request: GenerateRequest


@pytest.mark.slow
def test_a_detour_and_a_further_form_are_seen(chatted: RequestWay, monkeypatch: pytest.MonkeyPatch) -> None:
    def released(held: Held) -> GenerateRequest:
        return held.request

    async def detour(client: EngineClient, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        async for piece in stream(client, released(Held(request))):
            yield piece

    stream = EngineClient.stream
    monkeypatch.setattr(EngineClient, "stream", detour)
    monkeypatch.setattr(Held, "__module__", "fastslow.held")
    way, here = way_of_a_chat(monkeypatch), "tests/project/test_architecture.py"
    assert way.forms == chatted.forms | {"Held"}
    assert {(a, b) for a, b, _ in way.hops} - {(a, b) for a, b, _ in chatted.hops} == {
        ("serve/http/answer.py", here),
        (here, "serve/engines/process/client.py"),
    }
