"""A key's owner sees nothing of what other keys' owners asked, by no figure of its own answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_tools import NAME, open_tiny, write_tiny

from fastslow.serve.api.keys import KeyRing, add_key
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

SECRET = "The quick brown fox jumps over the lazy dog, and then once more. " * 3
TIMES = ("seconds", "ttft", "tpot", "time", "per_second", "_ms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@contextmanager
def opened(folder: Path, names: Sequence[str]) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A server with an engine that has answered nobody yet, and the keys of these names."""
    path = folder / f"{'-'.join(names)}.json"
    path.unlink(missing_ok=True)
    keys = {name: add_key(path, name) for name in names}
    engine = LocalEngine(open_tiny(folder, remember="by_key"), NAME)
    with TestClient(create_app(engine, keys=KeyRing(path))) as client:
        try:
            yield client, keys
        finally:
            assert client.portal is not None
            client.portal.call(engine.close)


def ask(client: TestClient, key: str, drafter: str, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 40}
    body |= {"temperature": 0, "speculation": {"drafter": drafter, "nodes": 4}, **fields}
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


@pytest.mark.parametrize("drafter", ["suffix", "ngram"])
def test_an_answer_is_the_same_whatever_others_asked(folder: Path, drafter: str) -> None:
    with opened(folder, ["b"]) as (client, keys):
        alone = ask(client, keys["b"], drafter)
    with opened(folder, ["a", "b"]) as (client, keys):
        for _ in range(3):
            own = ask(client, keys["a"], drafter)
        after = ask(client, keys["b"], drafter)
        salted = ask(client, keys["a"], drafter, cache_salt="another")
        answers = {
            name: client.get(f"/v1/requests/{id}/trace", headers={"x-api-key": keys["b"]})
            for name, id in (("other's", own["id"]), ("unknown", "not-there"))
        }
    assert timeless(after) == timeless(alone) == timeless(salted)
    cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (own, after)]
    assert cached[0] > 0 == cached[1]
    assert timeless(own) != timeless(alone)  # who asked before sees it
    said = [answer.json()["error"]["message"] for answer in answers.values()]
    assert {answer.status_code for answer in answers.values()} == {404}
    assert said[0].replace(own["id"], "not-there") == said[1]
