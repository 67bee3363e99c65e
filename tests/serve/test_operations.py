"""All that stands around the application, together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import pytest
from fake_engine import FakeEngine
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient

from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.key_file import KeyLimits, add_key
from fastslow.serve.api.keys import KeyRing
from fastslow.serve.http.operations import OperationSettings, install_operations

CHAT = "/v1/chat/completions"


def application(settings: OperationSettings) -> FastAPI:
    app = FastAPI()
    app.state.error_shapes = {}
    engine = install_operations(app, FakeEngine(), settings)

    @app.post(CHAT)
    async def chat(request: Request, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        body = await request.body()
        async for _ in engine.stream(Ask("1", "x", memory_key=who.memory())):
            pass
        return {"name": who.name, "memory": who.memory(), "size": len(body)}

    return app


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_with_limits(path: Path) -> None:
    bot = {"x-api-key": add_key(path, "bot", KeyLimits(tokens_per_minute=20))}
    page = {"x-api-key": add_key(path, "page")}
    settings = OperationSettings(keys=KeyRing(path), metrics_by_key=True)
    with TestClient(application(settings)) as client:
        assert client.post(CHAT).status_code == 401
        first = client.post(CHAT, headers=bot)
        assert (
            first.json()["name"] == "bot" and first.headers["x-ratelimit-remaining-tokens"] == "20"
        )
        second = client.post(CHAT, headers=bot)  # 16 tokens were spent, 4 are left
        assert second.status_code == 200 and second.headers["x-ratelimit-remaining-tokens"] == "4"
        third = client.post(CHAT, headers=bot)
        assert third.status_code == 429 and "20 tokens a minute" in third.json()["error"]["message"]
        other = client.post(CHAT, headers=page).json()
        assert other["memory"] not in (None, first.json()["memory"])
        text = client.get("/metrics").text
        assert 'fastslow:key_requests_total{key="bot",model_name="tiny"} 3.0' in text
        for status in (401, 429):  # refused before the route was found, and still told by it
            assert f'route="{CHAT}",status="{status}"' in text
        assert first.headers["x-content-type-options"] == "nosniff"
        assert third.headers["x-content-type-options"] == "nosniff"


def test_other_pages_are_let_in_only_where_they_are_named(path: Path) -> None:
    ask = {
        "origin": "https://chat.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with TestClient(application(OperationSettings())) as client:
        refused = client.options(CHAT, headers=ask)
        assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers
        assert client.post(CHAT, headers=ask).status_code == 403
    settings = OperationSettings(allow_origins=["https://chat.example.com"])
    with TestClient(application(settings)) as client:
        allowed = client.options(CHAT, headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
        answer = client.post(CHAT, headers={"origin": "https://chat.example.com"})
        assert answer.status_code == 200 and "access-control-allow-origin" in answer.headers
        other = client.options(CHAT, headers={**ask, "origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    add_key(path, "bot")
    settings = OperationSettings(keys=KeyRing(path), allow_origins=["https://chat.example.com"])
    with TestClient(application(settings)) as client:
        assert client.options(CHAT, headers=ask).status_code == 200  # a preflight has no key
        answer = client.post(CHAT, headers={"origin": "https://chat.example.com"})
        assert answer.status_code == 401 and "access-control-allow-origin" in answer.headers


@pytest.mark.parametrize(
    ("host", "keyed", "more", "named"),
    [
        ("127.0.0.1", False, (), True),
        ("::1", False, (), True),
        ("127.0.0.1", True, (), False),
        ("0.0.0.0", False, (), False),
        (None, False, (), False),
        ("0.0.0.0", True, ("chat.example.com",), True),
        ("127.0.0.1", False, ("*",), False),
    ],
)
def test_names_that_a_request_may_use(
    path: Path, host: str | None, keyed: bool, more: tuple[str, ...], named: bool
) -> None:
    add_key(path, "bot")
    keys = KeyRing(path) if keyed else None
    hosts = OperationSettings(keys=keys, host=host, allow_hosts=more).hosts
    assert (hosts is not None) == named
    if hosts is not None:
        assert {"localhost", "127.0.0.1", *more} <= set(hosts)


def test_places_of_all_together() -> None:
    app = application(OperationSettings(concurrent=0))
    with TestClient(app) as client:
        answer = client.post(CHAT)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "server_busy"
        assert client.get("/metrics").status_code == 200


def test_a_body_that_does_not_come() -> None:
    app = application(OperationSettings(body_seconds=0.05))
    sent: list[Any] = []

    async def slow() -> None:
        async def receive() -> dict[str, Any]:
            if not sent and not asked:
                asked.append(1)
                return {"type": "http.request", "body": b"{", "more_body": True}
            await asyncio.sleep(10)
            raise AssertionError("it was waited for")

        async def send(message: Any) -> None:
            sent.append(message)

        asked: list[int] = []
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode()}
        await app(scope | {"query_string": b"", "headers": []}, receive, send)

    asyncio.run(slow())
    assert sent[0]["status"] == 408
