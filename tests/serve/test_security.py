"""Headers that browsers obey, names and origins that a server answers to, and requests too large at the front."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.limits import Caller
from fastslow.serve.http.middleware import LOOPBACK, RequestWatch
from fastslow.serve.http.requests import Requests


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
    path, host = "/v1/chat/completions", {"host": "localhost:8000"}
    for origin in ("https://chat.example.com", "http://localhost:8000"):
        assert ours.post(path, headers={**host, "origin": origin}).status_code == 200
    assert ours.post(path, headers=host).status_code == 200  # no browser
    for origin in ("https://evil.example", "null", "http://localhost:9000", "", "http://["):
        answer = ours.post(path, headers={**host, "origin": origin})
        assert answer.status_code == 403, origin
    assert ours.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 200
    assert client(origins=["*"]).post(path, headers={"origin": "https://any"}).status_code == 200


ODD = ("[::1]evil", "127.0.0.1:80:evil", "[localhost]", "[::1", "::1", "localhost:80evil")


@pytest.mark.parametrize("host", [*ODD, "a b", "a/b"])
def test_odd_hosts_and_two(host: str) -> None:
    for hosts in (None, LOOPBACK):
        answer = client(hosts=hosts).get("/v1/models", headers={"host": host})
        assert answer.status_code == 400
        said = answer.json()["error"]["message"]
        assert said == f"Host: {host!r} is no name or address with a port"
        answer = client(hosts=hosts).get(
            "/v1/models", headers=[("host", "localhost"), ("host", host)]
        )
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
