"""Over HTTP, too, a key's owner sees nothing of what other keys' owners asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_tools import NAME, open_tiny, write_tiny

from fastslow.serve.api.keys import KeyRing, add_key
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

SECRET = "The quick brown fox jumps over the lazy dog, and then once more. " * 3
TIMES = ("seconds", "ttft", "tpot", "time", "per_second", "_ms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@contextmanager
def opened(folder: Path, names: Sequence[str]) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A server with an engine that nobody asked yet, and the keys of these names."""
    path = folder / f"{'-'.join(names)}.json"
    path.unlink(missing_ok=True)
    keys = {name: add_key(path, name) for name in names}
    engine = LocalEngine(open_tiny(folder, remember="by_key"), NAME)
    app = create_app(engine, keys=KeyRing(path))
    with TestClient(app) as client:
        try:
            yield client, keys
        finally:
            assert client.portal is not None
            client.portal.call(engine.close)


def ask(client: TestClient, key: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 40,
        "temperature": 0,
        "speculation": {"drafter": "suffix", "nodes": 4},
        **fields,
    }
    answer = client.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def timeless(value: Any) -> Any:
    """An answer without names and times."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(time in k for time in TIMES)}
        return {k: timeless(v) for k, v in kept.items() if k not in ("id", "created")}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_an_answer_is_the_same_whatever_others_asked(folder: Path) -> None:
    with opened(folder, ["b"]) as (client, keys):
        alone = ask(client, keys["b"])
    with opened(folder, ["a", "b"]) as (client, keys):
        for _ in range(3):
            own = ask(client, keys["a"])
        after = ask(client, keys["b"])
        salted = ask(client, keys["a"], cache_salt="another")
    assert timeless(after) == timeless(alone) == timeless(salted)
    cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (own, after)]
    assert cached[0] > 0 == cached[1]
    assert timeless(own) != timeless(alone)  # who asked before sees it


def test_requests_of_others_are_unknown(folder: Path) -> None:
    with opened(folder, ["a", "b"]) as (client, keys):
        id = ask(client, keys["a"])["id"]
        answers = {}
        for name in "ab":
            headers = {"x-api-key": keys[name]}
            answers[name] = client.get(f"/v1/requests/{id}/trace", headers=headers)
        unknown = client.get("/v1/requests/not-there/trace", headers={"x-api-key": keys["b"]})
    assert answers["b"].status_code == unknown.status_code == 404
    said = answers["b"].json()["error"]["message"].replace(id, "not-there")
    assert said == unknown.json()["error"]["message"]
