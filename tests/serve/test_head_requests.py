"""HEAD, as load balancers ask it."""

from __future__ import annotations

import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    alike = ("content-type", "etag", "content-security-policy", "x-frame-options")
    assert [head.headers.get(name) for name in alike] == [whole.headers.get(name) for name in alike]


def test_head_of_what_is_not_there(http: httpx.Client) -> None:
    assert http.head("/nothing").status_code == 404
    answer = http.head("/v1/chat/completions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert "head" not in str(http.get("/openapi.json").json()["paths"]["/health"])
