"""The ways in docs/architecture.md are those that a call of `generate()` and a streamed chat really take."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import httpx
import pytest
from msgspec import to_builtins

from fastslow import LLM, SamplingParams
from fastslow.engine.backends.cpu import library
from fastslow.request.options import GenerateOptions
from fastslow.serve.app import create_app
from fastslow.serve.engines.process.child import EngineServer
from fastslow.serve.engines.process.child_process import ChildProcess
from fastslow.serve.engines.process.client import EngineClient
from fastslow.serve.engines.process.connection import EngineConnection
from fastslow.serve.engines.process.messages import Start
from fastslow.serve.engines.settings import EngineSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
ROW = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", re.MULTILINE)
ROOMS = re.compile(r"^fastslow/(?=(engine|draft|policies|serve|tools)/)")
MOST_WORDS = 1600
CALL, MOST_CALL_HOPS = "## One call", 11
CHAT, MOST_CHAT_HOPS, MOST_FORMS = "## A streamed chat", 20, 5
SEED = 918_273  # by which a request is known in all of its forms


class Hop(NamedTuple):
    number: int
    file: str
    function: str


class Called(NamedTuple):
    """A call of a function of ours, by another function of ours or none."""

    file: str
    function: str
    caller: str  # the file that calls, "" where it is not ours


def hops(section: str) -> list[Hop]:
    """The way that a section of the page shows."""
    text = PAGE.read_text("utf-8").partition(f"{section}\n")[2].partition("\n## ")[0]
    return [Hop(int(number), file, name) for number, file, name in ROW.findall(text)]


def ours(frame: FrameType | None) -> str:
    return own_name(frame.f_code.co_filename) if frame is not None else ""


@cache
def own_name(file: str) -> str:
    path = Path(file)
    if ROOT not in path.parents:
        return ""
    return ROOMS.sub("", path.relative_to(ROOT).as_posix())


@contextmanager
def traced(see: Callable[[FrameType], None] | None = None) -> Iterator[list[Called]]:
    """Every call of ours, in this thread and in all that begin inside.

    Args:
        see: is shown each of them as it begins.
    """
    called: list[Called] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (file := ours(frame)):
            called.append(Called(file, frame.f_code.co_qualname, ours(frame.f_back)))
            if see is not None:
                see(frame)

    threading.setprofile(note)  # for the engine's thread, which begins with the model
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def check_order(way: list[Hop], called: list[Called]) -> None:
    places = [(one.file, one.function) for one in called]
    assert not [hop for hop in way if (hop.file, hop.function) not in places]
    first = [places.index((hop.file, hop.function)) for hop in way]
    assert first == sorted(first), [way[n].function for n in sorted(range(len(first)), key=first.__getitem__)]


def test_the_page_is_short() -> None:
    text = re.sub(r"```.*?```", "", PAGE.read_text("utf-8"), flags=re.DOTALL)
    words = re.sub(r"^\| \d+ \|.*$", "", text, flags=re.MULTILINE).split()  # without the hops
    assert len(words) <= MOST_WORDS


@pytest.mark.parametrize(("section", "most"), [(CALL, MOST_CALL_HOPS), (CHAT, MOST_CHAT_HOPS)])
def test_each_way_is_short(section: str, most: int) -> None:
    way = hops(section)
    assert [hop.number for hop in way] == list(range(1, len(way) + 1)) and 5 <= len(way) <= most
    for hop in way:
        assert hop.function.rpartition(".")[2] in (ROOT / hop.file).read_text("utf-8")


@pytest.fixture(scope="module")
def generated() -> list[Called]:
    """The functions that a call of `generate()` calls."""
    with traced() as called, LLM("abacus", progress=False) as llm:
        llm.generate("1 + 1 =", SamplingParams(max_tokens=1))
        called.clear()
        llm.generate("What is 327 + 486?", SamplingParams(max_tokens=8))
    return called


@pytest.mark.skipif(not library.available(), reason="one hop is the kernels' decoder")
def test_a_call_takes_these_hops_in_this_order(generated: list[Called]) -> None:
    check_order(hops(CALL), generated)


def test_building_a_request_goes_one_way(generated: list[Called]) -> None:
    """Until the engine has the requests, no file calls into a file that it is imported by."""
    submitted = [one.function for one in generated].index("Worker.submit")
    imported = {
        path.relative_to(ROOT).as_posix(): set(
            re.findall(r"^from fastslow\.([\w.]+) import", path.read_text("utf-8"), re.MULTILINE)
        )
        for path in (ROOT / "fastslow/request").glob("*.py")
    }
    names = {file: file.removeprefix("fastslow/").removesuffix(".py").replace("/", ".") for file in imported}
    inner = [one for one in generated[:submitted] if one.file in names and one.caller in names]
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


def carries(value: object) -> bool:
    """True where a value has the request's seed: in a field, in plain values, or in options."""
    if isinstance(value, dict):
        return any(map(carries, value.values()))
    if isinstance(value, list | tuple):
        return any(map(carries, value))
    if isinstance(value, SamplingParams | GenerateOptions):
        return any(carries(getattr(value, name)) for name in type(value).model_fields)
    return type(value) is int and value == SEED


def form_of(value: object) -> str | None:
    """The name of a class of ours whose object carries the request."""
    kind = type(value)
    if not kind.__module__.startswith("fastslow.") or kind is SamplingParams:
        return None
    names = [*getattr(value, "__dict__", ()), *getattr(kind, "__slots__", ())]
    names += getattr(kind, "__struct_fields__", ())
    fields = [getattr(value, name, None) for name in names]
    return kind.__name__ if any(map(carries, fields)) else None


@pytest.fixture(scope="module")
def chatted() -> tuple[list[Called], set[str]]:
    """The functions that a streamed chat calls, and the forms that the request takes on its way between files."""
    forms: set[str] = set()

    def see(frame: FrameType) -> None:
        file = ours(frame)
        known = file.startswith(("serve/", "fastslow/")) or file == "engine/core/worker.py"
        if known and file != ours(frame.f_back):
            given = list(frame.f_locals.values())
            each = [*given, *(one for some in given if isinstance(some, list) for one in some)]
            forms.update(name for name in map(form_of, each) if name)

    async def chat() -> list[Called]:
        client = EngineClient(EngineSettings("abacus", "abacus", {"progress": False, "kv_memory": "16MiB"}))
        await client.start()
        app = create_app(client)
        asked = {
            "messages": [{"role": "user", "content": "What is 3 + 4?"}], "stream": True, "seed": SEED,
            "max_tokens": 8,
        }  # fmt: skip
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as web:
            called.clear()
            answer = await web.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 200 and "data: [DONE]" in answer.text
        await client.close()
        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChildProcess, "start", NoProcess.start)
        patch.setattr(os, "_exit", never_exits)
        with traced(see) as called:
            asyncio.run(chat())
    return called, forms


def test_a_streamed_chat_takes_these_hops_in_this_order(chatted: tuple[list[Called], set[str]]) -> None:
    check_order(hops(CHAT), chatted[0])


def test_a_streamed_chat_has_five_forms(chatted: tuple[list[Called], set[str]]) -> None:
    # a GenerateRequest holds its options, and the body is what came in the HTTP request
    forms = chatted[1] - {"GenerateOptions", "Stopper"}
    text = PAGE.read_text("utf-8").partition(f"{CHAT}\n")[2].partition("\n## ")[0]
    assert len(forms) == MOST_FORMS, sorted(forms)
    assert all(f"`{name}`" in text for name in forms), forms
