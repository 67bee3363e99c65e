"""The layers around the routes: names and origins that are answered, headers, keys, and places."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from serve_tools import call

from fastslow.serve.api.config import ServerConfig
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.keys import KeyLimits, KeyRing, add_key
from fastslow.serve.api.limits import Caller
from fastslow.serve.app import allowed_hosts, create_app
from fastslow.serve.http.middleware import LOOPBACK, RequestWatch
from fastslow.serve.http.requests import Requests

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "x"}]}


def client(hosts: Sequence[str] | None = None, origins: Sequence[str] | None = None) -> TestClient:
    app = FastAPI()

    @app.get("/v1/models")
    @app.post("/v1/chat/completions")
    async def answer() -> dict[str, str]:
        return {}

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse("x", headers={"cache-control": "max-age=9"})

    app.add_middleware(RequestWatch, hosts=hosts, origins=origins)
    return TestClient(app)


def test_headers() -> None:
    found = client().get("/v1/models").headers
    assert found["x-content-type-options"] == "nosniff"
    assert found["content-security-policy"].startswith("default-src 'none'")
    assert found["cache-control"] == "no-store"
    page = client().get("/").headers
    assert "content-security-policy" not in page  # the page says itself what it needs
    assert page["cache-control"] == "max-age=9" and page["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in found
    assert client().get("/not-there").headers["x-content-type-options"] == "nosniff"


def test_hosts() -> None:
    ours = client(hosts=[*LOOPBACK, "Chat.example.com"])
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "chat.EXAMPLE.com"):
        assert ours.get("/v1/models", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io:8000"):
        answer = ours.get("/v1/models", headers={"host": host})
        assert answer.status_code == 400, host
        assert "no name of this server" in answer.json()["error"]["message"]
    assert client().get("/v1/models", headers={"host": "evil.example"}).status_code == 200


def test_origins() -> None:
    ours = client(origins=["https://chat.example.com"])
    path, host = CHAT, {"host": "localhost:8000"}
    for origin in ("https://chat.example.com", "http://localhost:8000"):
        assert ours.post(path, headers={**host, "origin": origin}).status_code == 200
    assert ours.post(path, headers=host).status_code == 200  # no browser
    for origin in ("https://evil.example", "null", "http://localhost:9000", "", "http://["):
        assert ours.post(path, headers={**host, "origin": origin}).status_code == 403, origin
    assert ours.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 200
    assert client(origins=["*"]).post(path, headers={"origin": "https://any"}).status_code == 200


ODD = ("[::1]evil", "127.0.0.1:80:evil", "[localhost]", "[::1", "::1", "localhost:80evil")


@pytest.mark.parametrize("host", [*ODD, "a b", "a/b"])
def test_odd_hosts_and_two(host: str) -> None:
    for hosts in (None, LOOPBACK):
        answer = client(hosts=hosts).get("/v1/models", headers={"host": host})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == f"Host: {host!r} is no name or address with a port"
        answer = client(hosts=hosts).get("/v1/models", headers=[("host", "localhost"), ("host", host)])
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "there are 2 Host headers; a request has one"


def test_callers_take_no_names_of_requests_from_each_other() -> None:
    requests, one, two = Requests(), Caller("one"), Caller("two")
    with requests.running(["same", "a"], ["engine-1"], one):
        with requests.running(["same", "b"], ["engine-2"], two):
            for who, ids in ((one, ["engine-1"]), (two, ["engine-2"])):
                assert requests.find("same", who) == ids
        with requests.running(["same"], ["engine-3"], one):
            assert requests.find("same", one) == ["engine-1"], "it runs"
    for _ in range(2):
        assert requests.find("same", one) == ["engine-1"]
        with requests.running(["same"], ["engine-4"], two):
            pass
    assert requests.find("same", two) == ["engine-4"]
    for name, who in (("b", one), ("a", two), ("same", Caller())):
        with pytest.raises(ApiError, match="is not known"):
            requests.find(name, who)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_with_limits(path: Path) -> None:
    bot = {"x-api-key": add_key(path, "bot", KeyLimits(tokens_per_minute=20))}
    page = {"x-api-key": add_key(path, "page")}
    engine = FakeEngine()
    with TestClient(create_app(engine, ServerConfig(metrics_by_key=True), KeyRing(path))) as client:
        assert client.post(CHAT).status_code == 401
        asked = {**BODY, "max_tokens": 4}
        assert client.post(CHAT, headers=bot, json={**BODY, "max_tokens": 21}).status_code == 403
        first = client.post(CHAT, headers=bot, json=asked)
        assert first.status_code == 200 and first.headers["x-ratelimit-remaining-tokens"] == "20"
        assert client.post(CHAT, headers=bot, json={**BODY, "max_tokens": 5}).status_code == 429
        second = client.post(CHAT, headers=bot, json=asked)  # 16 tokens were spent, 4 are left
        assert second.status_code == 200 and second.headers["x-ratelimit-remaining-tokens"] == "4"
        third = client.post(CHAT, headers=bot, json=asked)
        error = third.json()["error"]
        assert third.status_code == 429 and "20 tokens a minute" in error["message"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(third.headers["retry-after"]) <= 60
        client.post(CHAT, headers=page, json=BODY)
        memories = [one.options.memory_key for one in engine.asked]
        assert [one.options.share for one in engine.asked] == memories
        assert None not in memories and memories[0] == memories[1] != memories[2]
        text = client.get("/metrics").text
        assert 'fastslow:key_tokens_total{key="page",kind="prompt",model_name="tiny"} 10.0' in text
        assert 'fastslow:key_requests_total{key="bot",model_name="tiny"} 5.0' in text
        for status in (401, 429):  # refused before the route was found, and still labelled with it
            assert f'route="{CHAT}",status="{status}"' in text
        assert client.get("/v1/models", headers=bot).status_code == 200
        assert first.headers["x-content-type-options"] == "nosniff"
        assert third.headers["x-content-type-options"] == "nosniff"


def test_other_pages_are_let_in_only_where_they_are_named(path: Path) -> None:
    ask = {
        "origin": "https://chat.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with TestClient(create_app(FakeEngine())) as client:
        refused = client.options(CHAT, headers=ask)
        assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers
        assert client.post(CHAT, headers=ask).status_code == 403
    config = ServerConfig(allow_origins=("https://chat.example.com",))
    with TestClient(create_app(FakeEngine(), config)) as client:
        allowed = client.options(CHAT, headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
        answer = client.post(CHAT, headers={"origin": "https://chat.example.com"}, json=BODY)
        assert answer.status_code == 200 and "access-control-allow-origin" in answer.headers
        other = client.options(CHAT, headers={**ask, "origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    add_key(path, "bot")
    with TestClient(create_app(FakeEngine(), config, KeyRing(path))) as client:
        assert client.options(CHAT, headers=ask).status_code == 200  # a preflight has no key
        answer = client.post(CHAT, headers={"origin": "https://chat.example.com"}, json=BODY)
        assert answer.status_code == 401 and "access-control-allow-origin" in answer.headers


@pytest.mark.parametrize(("host", "keyed", "more", "named"), [
    ("127.0.0.1", False, (), True), ("::1", False, (), True), ("127.0.0.1", True, (), False),
    ("0.0.0.0", False, (), False), (None, False, (), False), ("0.0.0.0", True, ("chat.example.com",), True),
    ("127.0.0.1", False, ("*",), False),
])  # fmt: skip
def test_names_that_a_request_may_use(host: str | None, keyed: bool, more: tuple[str, ...], named: bool) -> None:
    hosts = allowed_hosts(more, host, keyed)
    assert (hosts is not None) == named
    if hosts is not None:
        assert {"localhost", "127.0.0.1", *more} <= set(hosts)


def test_places_of_all_together_and_a_body_that_does_not_come() -> None:
    with TestClient(create_app(FakeEngine(), ServerConfig(max_requests=0))) as client:
        answer = client.post(CHAT)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "server_busy"
        for path in ("/metrics", "/v1/models"):
            assert client.get(path).status_code == 200
        assert client.post("/v1/requests/1/stop_thinking").status_code == 404
    app = create_app(FakeEngine(), ServerConfig(body_seconds=0.05))
    assert asyncio.run(call(app, "POST", CHAT, b"{", whole=False))[0]["status"] == 408
