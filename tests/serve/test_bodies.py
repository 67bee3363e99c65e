"""Bodies that hold up others by what they hold, or by never being whole; requests that do not wait for answers."""

import asyncio
import difflib
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import attacks
import httpx
import pytest
from attacks import BOMBS, CHAT, LARGEST, TEXTS, post, waits_during
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from loops import within
from processes_served import SUPPORT, line, program
from pydantic import ValidationError
from serve_tools import call

from fastslow.engine.params import nearest
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.fields import GrammarFields
from fastslow.serve.app import create_app
from fastslow.serve.http import body
from fastslow.serve.http.body import TOGETHER, JsonCount, read_json

SLOW = 1000  # ms that nobody waits, however busy the machine is; the goal is 50
MANY = {name: bomb for name, (bomb, refused) in BOMBS.items() if refused}
COSTLY = (list, dict, bool, float)


def held(data: bytes, size: int = 10**9, **settings: Any) -> None:
    """Count what comes in pieces of a size."""
    count = JsonCount(ServerSettings(**settings))
    for start in range(0, len(data), size):
        count.add(data[start : start + size])
    count.end()


@pytest.mark.parametrize("name", MANY)
def test_what_is_too_much_is_refused_before_it_is_read(name: str) -> None:
    with pytest.raises(ApiError) as error:
        held(MANY[name], 70_000)
    assert error.value.status in (400, 413)


def counted(value: Any) -> tuple[int, int, int]:
    """Levels, parts that cost the most, and values of some JSON."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 0, int(isinstance(value, COSTLY)), 1
    found = [counted(one) for one in inner]
    parts = 1 + (len(value) if isinstance(value, dict) else 0) + sum(one[1] for one in found)
    return 1 + max((one[0] for one in found), default=0), parts, 1 + sum(one[2] for one in found)


marks = st.text(st.sampled_from('[]{}:,."\\eE\u00e9 '), max_size=9)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(0.5) | marks,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(marks, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 9))
def test_marks_in_texts_are_not_counted(value: Any, escaped: bool, indent: int | None, size: int) -> None:
    data = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    depth, parts, number = (max(1, one) for one in counted(value))
    fits = {"json_depth": depth, "json_parts": parts, "json_values": number}
    with patch.object(body, "PIECE", size):
        held(data, 1, **fits)
        if depth > 1:
            with pytest.raises(ApiError, match="nests deeper"):
                held(data, 1, **{**fits, "json_depth": depth - 1})
        if parts > 1:
            with pytest.raises(ApiError, match="the body has more than"):
                held(data, 1, **{**fits, "json_parts": parts - 1})
    assert read_json(data) == value


def test_as_many_values_as_the_settings_say() -> None:
    held(b'["a,b", 2, "", null]', json_values=4)
    with pytest.raises(ApiError, match="the body has more than 4 values"):
        held(b"[1, 2, 3, 4, 5]", json_values=4)


@pytest.mark.parametrize("name", ["names that fit", "biases that fit"])
def test_few_of_many_errors_are_looked_at(http: httpx.Client, name: str) -> None:
    answer = http.post(TEXTS, content=BOMBS[name][0], headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert re.fullmatch(r"the body has \d+ errors; at most 100 are looked at", answer.json()["error"]["message"])


@within()
async def test_unfinished_bodies_have_a_limit_together() -> None:
    """Of those that were silent for longest the bytes are let go; the others have their time."""
    settings = ServerSettings(body_bytes=1000)
    app = create_app(FakeEngine(), ServerConfig(settings=settings, body_seconds=0.2))
    calls = [call(app, "POST", CHAT, b" " * 900, whole=False) for _ in range(TOGETHER + 5)]
    whole = b'{"messages": [{"role": "user", "content": "hi"}]}'
    *sent, last = await asyncio.gather(*calls, call(app, "POST", CHAT, whole))
    again = await call(app, "POST", CHAT, b" " * 900, whole=False)
    fit = TOGETHER * 1000 // 900
    statuses = [one[0]["status"] for one in (*sent, last, again)]
    assert statuses == [503] * (TOGETHER + 5 - fit) + [408] * fit + [200, 408]
    refused = json.loads(sent[0][1]["body"])["error"]
    assert refused["code"] == "server_busy" and "unfinished bodies" in refused["message"]
    assert (b"retry-after", b"1") in sent[0][0]["headers"]


@within(60)
async def test_who_has_most_unfinished_bodies_gives_up_first() -> None:
    """24 of one address, of which each adds a little all the time, and 8 slow uploads of others."""
    settings = ServerSettings(body_bytes=1000)
    app = create_app(FakeEngine(), ServerConfig(settings=settings, body_seconds=0.5))
    sent = b" " * 900
    honest = [call(app, "POST", CHAT, sent, whole=False, address=f"10.0.0.{n}") for n in range(8)]
    tasks = [asyncio.create_task(one) for one in honest]
    await asyncio.sleep(0.05)
    flood = [call(app, "POST", CHAT, sent, whole=False, address="10.0.1.1") for _ in range(24)]
    statuses = [one[0]["status"] for one in await asyncio.gather(*tasks, *flood)]
    assert statuses[:8] == [408] * 8, "they had their time"
    assert statuses[8:].count(503) == 24 + 8 - TOGETHER * 1000 // 900


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n{" % (LARGEST + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_texts_that_hold_much() -> None:
    """A schema as a text is JSON, too; a name that is no field is compared with those that are."""
    bomb = attacks.filled(b"", b"[],", b"").decode()
    with pytest.raises(ValidationError, match="at most 131072 characters"):
        GrammarFields(guided_json=bomb)
    with pytest.raises(ValidationError, match="at most 131072 characters"):
        GrammarFields.model_validate({"structured_outputs": {"json": bomb}})
    with patch.object(difflib, "get_close_matches", wraps=difflib.get_close_matches) as compared:
        assert nearest(bomb, ["seed"]) == "; known: seed"
    assert len(compared.call_args.args[0]) < 100


@pytest.fixture(scope="module")
def attacked() -> Iterator[tuple[str, int]]:
    """The address of a server in another process, and its process id."""
    with program(SUPPORT / "serve_fake.py") as server:
        url = line(server)
        waits_during(url, lambda: None)  # so that it is warm
        yield url, server.pid


@pytest.mark.slow
def test_bombs_and_a_bystander(attacked: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = attacked
    rows = {"alone": waits_during(url, lambda: None, 3)}
    for name, (bomb, refused) in BOMBS.items():
        path = CHAT if b"messages" in bomb[:20] else TEXTS
        statuses: list[int] = []

        def attack(path: str = path, bomb: bytes = bomb, found: list[int] = statuses) -> None:
            found += [post(url, path, bomb) for _ in range(8)]

        rows[name] = waits_during(url, attack)
        assert set(statuses) <= ({400, 413} if refused else {200, 400, 413, 429}), name
    _show(rows, capsys)
    assert max(found[-1] for found in rows.values()) < SLOW


@pytest.mark.slow
def test_pipelining_and_a_bystander(attacked: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = attacked
    rows = {"alone": waits_during(url, lambda: None, 3)}
    answers: list[int] = []
    rows["50,000 requests"] = waits_during(url, lambda: answers.append(attacks.pipelined(url, 50_000)))
    _show(rows, capsys)
    assert answers == [50_000]
    found = rows["50,000 requests"]
    assert len(found) > 500 and found[int(0.99 * len(found))] < SLOW / 4 and found[-1] < SLOW


@pytest.mark.slow
def test_the_memory_of_unfinished_bodies(attacked: tuple[str, int]) -> None:
    url, pid = attacked
    before = attacks.memory_of(pid)
    with ExitStack() as stack:
        for connection in attacks.begun_bodies(url, 150, 4_100_000):
            stack.enter_context(connection)
        time.sleep(1)
        grown = attacks.memory_of(pid) - before
        assert post(url, CHAT, BOMBS["messages that fit"][0]) == 200  # larger ones have room
    assert grown < 2.5 * TOGETHER * LARGEST  # all of them: 600 MB


def _show(rows: dict[str, list[float]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n| | answers | p50 ms | p99 ms | worst ms |\n|---|---|---|---|---|")
        print("\n".join(attacks.row(name, found) for name, found in rows.items()))
