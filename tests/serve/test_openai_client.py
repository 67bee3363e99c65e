"""The official client, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_with_everything(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES],
        max_completion_tokens=12,
        temperature=0.5,
        top_p=0.9,
        seed=4,
        n=2,
        stop=["zq"],
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"40": 1},
        logprobs=True,
        top_logprobs=2,
        reasoning_effort="minimal",
        prediction={"type": "content", "content": "The quick brown fox jumps"},
        response_format={"type": "text"},
        user="somebody",
        extra_body={"speculation": {"drafter": "ngram", "nodes": 4}, "top_k": 50},
    )
    assert [choice.index for choice in made.choices] == [0, 1] and made.model == "tiny"
    first = made.choices[0]
    assert first.message.role == "assistant" and first.logprobs is not None
    assert first.logprobs.content and first.logprobs.content[0].bytes is not None
    assert made.usage is not None and made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.accepted_prediction_tokens is not None
    assert made.metrics["drafter"] == "ngram"  # type: ignore[attr-defined]


def test_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=10,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "thinking_budget": 3},
    )
    chunks = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thought = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    assert thought and "".join(delta.content or "" for delta in deltas)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 10
    assert chunks[-1].usage.prompt_tokens_details is not None


def test_the_client_s_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, max_tokens=6, seed=2, extra_body={"mode": "fast"}
    ) as stream:
        for _ in stream:
            pass
        made = stream.get_final_completion()
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, seed=2, extra_body={"mode": "fast"}
    )
    assert made.choices[0].message.content == whole.choices[0].message.content


def test_completions_and_models(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="tiny", prompt=["The", "Every"], max_tokens=4, logprobs=1, echo=True
    )
    assert [choice.text[:3] for choice in made.choices] == ["The", "Eve"]
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.tokens
    streamed = client.completions.create(model="tiny", prompt="The", max_tokens=4, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in streamed][-1] in ("stop", "length")
    assert [model.id for model in client.models.list()][:2] == ["tiny", "tiny:fast"]
    assert client.models.retrieve("tiny").object == "model"


def test_errors_are_the_client_s_own_kinds(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens=0") as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=0)
    assert bad.value.param == "max_tokens" and bad.value.type == "invalid_request_error"
    assert bad.value.request_id is not None
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_many_at_once(url: str) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> tuple[str, str]:
        asked: dict[str, Any] = {
            "model": "tiny",
            "messages": MESSAGES,
            "max_tokens": 8,
            "seed": seed,
        }
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [choice.delta async for chunk in stream for choice in chunk.choices]
        said = "".join((getattr(d, "reasoning", None) or "") + (d.content or "") for d in deltas)
        message = whole.choices[0].message
        return said, (getattr(message, "reasoning", None) or "") + (message.content or "")

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    pairs = asyncio.run(all_of_them())
    assert all(streamed == whole for streamed, whole in pairs)
    assert len({whole for _, whole in pairs}) > 8
