"""A stream that tells sources also tells each token's own text, so that a client can show which is whose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_tools import NAME, events_of, open_tiny, write_tiny

from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with open_tiny(write_tiny(tmp_path_factory.mktemp("tiny"))) as llm:
        yield TestClient(create_app(LocalEngine(llm, NAME)))


def deltas_of(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    body = {
        "messages": [{"role": "user", "content": "tell me about the quick brown fox"}],
        "stream": True,
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": 5,
        "ignore_eos": True,
        **fields,
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choices = [c for event in events_of(answer.text) for c in event["choices"]]
    return [choice["delta"] for choice in choices]


def test_texts_of_tokens_are_the_answer(client: TestClient) -> None:
    deltas = deltas_of(client, mode="fast", stream_options={"include_sources": True})
    told = [delta for delta in deltas if "token_ids" in delta]
    assert sum(len(delta["token_ids"]) for delta in told) > 20
    for delta in told:
        assert len(delta["token_ids"]) == len(delta["token_texts"]) == len(delta["sources"])
    texts = "".join(text for delta in told for text in delta["token_texts"])
    said = "".join(delta.get("content", "") for delta in deltas)
    assert _ascii(said) == _ascii(texts) != ""  # other characters may be of several tokens


def _ascii(text: str) -> str:
    return "".join(character for character in text if character.isascii())


def test_texts_come_only_with_sources(client: TestClient) -> None:
    for delta in deltas_of(client, mode="fast"):
        assert "token_texts" not in delta and "token_ids" not in delta
