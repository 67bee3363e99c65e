"""Errors of a request are told in one sentence, in OpenAI's shape, and never are a 5xx."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from serve_tools import client_of, served

from fastslow import Busy, Piece
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app

CHAT = [{"role": "user", "content": "hi"}]
DEEP = "[" * 150 + "]" * 150


def error_of(answer: httpx.Response) -> dict[str, Any]:
    made = answer.json()
    assert set(made) == {"error"} and set(made["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in made["error"]["message"] and answer.headers["x-request-id"]
    error: dict[str, Any] = made["error"]
    return error


@pytest.mark.parametrize(("content", "said"), [
    (b"", "the body is empty"), (b"{", "expecting property name"), (b"null", "the body=None must be an object"),
    (b"\xff\xfe", "is not UTF-8"), (b"{} {}", "extra data"), (b'{"temperature": NaN}', "NaN is no number"),
    (b'{"temperature": 1e400}', "too large"), (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
    (b'{"messages": [{"role": "user", "content": "\\udead"}]}', "lone surrogate"),
    (f'{{"messages": {DEEP}}}'.encode(), "nests deeper than 100"), (b"[" * 1_000_000, "nests deeper than 100"),
])  # fmt: skip
def test_bodies_that_are_no_json(http: httpx.Client, content: bytes, said: str) -> None:
    kind = {"content-type": "application/json; charset=utf-8"}
    answer = http.post("/v1/chat/completions", content=content, headers=kind)
    assert answer.status_code == 400 and said in error_of(answer)["message"]


@pytest.mark.parametrize(("fields", "param", "said"), [
    ({"messages": None}, "messages", "must be a valid list"),
    ({"messages": []}, "messages", "messages=[] must have at least 1 item"),
    ({"messages": [{}]}, "messages[0].role", "field 'messages[0].role' is missing"),
    ({"messages": [{"role": "user"}]}, "messages", "messages[0].content is missing"),
    ({"messages": [{"role": "me", "content": "a"}]}, "messages[0].role", "'me' must be"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages",
        "messages[0].content[0].type='image_url' is not read here",
    ),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "=7 must be"),
    ({"messages": CHAT * 600}, "messages", "messages has 600"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens=1.5 must be a valid integer"),
    ({"max_tokens": 10**80}, "max_tokens", "must be less than"),
    ({"temperature": True}, "temperature", "must be a valid number"),
    ({"temperature": 2.01}, "temperature", "temperature=2.01 must be less than or equal to 2"),
    ({"n": 17}, "n", "n=17 must be at most 16"),
    ({"stop": ["x"] * 33}, "stop", "stop has 33 entries; at most 32"),
    ({"seed": 2**63}, "seed", "must be less than"),
    ({"logit_bias": {"x": 1}}, None, "must match"),
    ({"logit_bias": {"999": 1}}, "logit_bias", "outside the vocabulary"),
    ({"top_logprobs": 2}, "top_logprobs", "unless logprobs is true"),
    ({"mode": "fst"}, "mode", "did you mean 'fast'"),
    ({"mode": {"thinkin": "on"}}, None, "did you mean 'thinking'"),
    ({"groups": 99}, None, "groups=99 is outside 0..4"),
    ({"temprature": 1}, None, "field 'temprature' is unknown; did you mean 'temperature'"),
    ({"zzz": 1}, None, "field 'zzz' is unknown"),
    ({"stream_options": {"zzz": 1}}, "stream_options.zzz", "'stream_options.zzz' is unknown"),
    ({"x" * 100_000: 1}, None, "is unknown"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "contradict"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "unless stream is true"),
    ({"chat_template_kwargs": {"nope": 1}}, "chat_template_kwargs", "reads no variable 'nope'"),
    ({"response_format": {"type": "json_schema"}}, None, "json_schema.schema' is missing"),
    ({"speculation": "nosuch"}, None, "nosuch"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "exceeds max_tokens=3"),
    ({"stop_token_ids": [999]}, "stop_token_ids", "outside the vocabulary"),
    ({"messages": [{"role": "user", "content": "x" * 30_000}]}, None, "fit"),
])  # fmt: skip
def test_one_sentence_about_a_field(http: httpx.Client, fields: dict[str, Any], param: str | None, said: str) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert len(error["message"]) < 600


def test_openai_s_fields_without_a_meaning_here_are_taken(http: httpx.Client) -> None:
    fields = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"}
    fields |= {"safety_identifier": "s", "prompt_cache_key": "k", "verbosity": "low"}
    assert http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1, **fields}).status_code == 200


def test_other_statuses(http: httpx.Client) -> None:
    post = "/v1/chat/completions"
    for answer, status, code in (
        (http.get("/nothing"), 404, "not_found"),
        (http.get(post), 405, "method_not_allowed"),
        (http.post(post, content=b"a=1", headers={"content-type": "text/plain"}), 400, None),
        (http.post(post, json={"messages": CHAT, "model": "gpt-9"}), 404, "model_not_found"),
        (http.delete("/v1/requests/nothing"), 404, "request_not_found"),
        (http.post("/v1/requests/nothing/stop_thinking"), 404, "request_not_found"),
        (http.get("/v1/requests/nothing/trace"), 404, "request_not_found"),
    ):
        assert answer.status_code == status, answer.text
        error = error_of(answer)
        assert code is None or error["code"] == code


def test_ids_of_requests_go_in_and_out(http: httpx.Client) -> None:
    for given, kept in (("mine-1:2.3_4", True), ("with space", False), ("x" * 129, False)):
        assert (http.get("/v1/models", headers={"x-request-id": given}).headers["x-request-id"] == given) is kept
    fresh = [http.get("/nothing").headers["x-request-id"] for _ in range(2)]
    assert len(set(fresh)) == 2 and all(re.fullmatch(r"req-[0-9a-f]{24}", one) for one in fresh)


async def full(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
    raise Busy("full")
    yield


@pytest.fixture
def broken() -> Iterator[httpx.Client]:
    app = create_app(FakeEngine(full), ServerConfig(settings=ServerSettings(body_bytes=1000)))
    with served(app) as url, httpx.Client(base_url=url) as client:
        yield client


def test_bodies_are_limited_also_without_a_length(broken: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b"          "

    kind = {"content-type": "application/json"}
    for content in (b" " * 1001, chunks()):
        answer = broken.post("/v1/chat/completions", content=content, headers=kind)
        assert answer.status_code == 413 and error_of(answer)["code"] == "body_too_large"


def test_settings_name_the_models_that_are_taken() -> None:
    async def statuses(settings: ServerSettings) -> list[int]:
        app = create_app(FakeEngine(full), ServerConfig(settings=settings))
        names = ("tiny", "gpt-4o", "tiny:deep", "gpt-4o:deep", "other")
        async with client_of(app) as client:
            bodies = [{"prompt": "a", "model": name} for name in names]
            return [(await client.post("/v1/completions", json=b)).status_code for b in bodies]

    assert asyncio.run(statuses(ServerSettings())) == [429, 404, 429, 404, 404]
    assert asyncio.run(statuses(ServerSettings(aliases=("gpt-4o",)))) == [429, 429, 429, 429, 404]
    assert asyncio.run(statuses(ServerSettings(any_model=True))) == [429] * 5


def test_a_body_of_very_many_parts(http: httpx.Client) -> None:
    """A few bytes each, that would be looked at one by one."""
    parts = [{"type": "text", "text": "a"}] * 30_000
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    for path in ("chat/completions", "messages"):
        answer = http.post(f"/v1/{path}", json=body)
        assert answer.status_code == 413
        said = answer.json()["error"]["message"]
        assert said.startswith("the body has more than 30000 lists, objects, names, fractions")
