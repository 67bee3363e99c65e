"""Frameworks that people build on call tools over the server, streamed and whole. The project does not need them: one
that is not installed is skipped.

The answer comes in one piece, where clients that expect an entry for each call and chunk go wrong.
"""

from __future__ import annotations

import asyncio
import functools
import json
import operator
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine, output
from pydantic import BaseModel
from serve_tools import served

from fastslow.engine.text.tool_formats import GENERIC
from fastslow.output import Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.http.app import create_app

pytestmark = pytest.mark.slow
ASKED, SAID = "Does it rain?", "It rains."
CALLED: dict[str, Any] = {"city": 'Köln, "old"', "days": 2}
CHAT: Any = [{"role": "user", "content": ASKED}]
called: list[dict[str, Any]] = []


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


def get_weather(city: str, days: int) -> str:
    """Say the weather of a city for some days."""
    called.append({"city": city, "days": days})
    return "rain"


async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
    """A call of the first tool, and after its result a text."""
    variables, text = request.options.chat_template_kwargs or {}, SAID
    last: Any = request.prompt[-1]
    if last["role"] != "tool":
        tools: Any = variables["tools"]
        text = GENERIC.written([{"name": tools[0]["function"]["name"], "arguments": CALLED}])
    yield Piece(text, token_ids=[1])
    yield Piece(output=output(text))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(create_app(FakeEngine(script))) as url:
        yield url


@pytest.fixture(autouse=True)
def _none_called() -> None:
    called.clear()


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_langchain(url: str, kind: str) -> None:
    own: dict[str, Any] = {"model": "tiny", "api_key": "none", "base_url": f"{url}/v1"}
    if kind == "messages":
        chat = pytest.importorskip("langchain_anthropic").ChatAnthropic(**own | {"base_url": url})
    else:
        library = pytest.importorskip("langchain_openai")
        chat = library.ChatOpenAI(**own, use_responses_api=kind == "responses")
    model = chat.bind_tools([get_weather])
    streamed = functools.reduce(operator.add, model.stream(ASKED))
    for made in (model.invoke(ASKED), streamed):
        assert [(call["name"], call["args"]) for call in made.tool_calls] == [
            ("get_weather", CALLED)
        ]
        assert made.invalid_tool_calls == []


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(url: str, kind: str) -> None:
    library = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    agent = library.Agent(getattr(models, kind)("tiny", provider=provider), tools=[get_weather])

    async def streamed() -> Any:
        async with agent.run_stream(ASKED) as run:
            return await run.get_output()

    assert asyncio.run(streamed()) == SAID and called == [CALLED]
    assert agent.run_sync(ASKED).output == SAID and called == [CALLED, CALLED]


def test_instructor(url: str) -> None:
    library = pytest.importorskip("instructor")
    client = library.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"))
    asked = {"model": "tiny", "messages": CHAT, "response_model": Weather}
    assert client.chat.completions.create(**asked).model_dump() == CALLED
    *_, last = client.chat.completions.create_partial(**asked)
    assert last.model_dump() == CALLED


def test_litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    library = pytest.importorskip("litellm")
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    asked: Any = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "none"}
    asked |= {"messages": CHAT, "tools": [tool]}
    streamed = library.stream_chunk_builder(list(library.completion(**asked, stream=True)))
    for made in (library.completion(**asked), streamed):
        (call,) = made.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", CALLED)


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(url: str, kind: str) -> None:
    library = pytest.importorskip("agents")
    library.set_tracing_disabled(True)

    async def outputs() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            model = getattr(library, kind)(model="tiny", openai_client=client)
            tools = [library.function_tool(get_weather)]
            agent = library.Agent(name="one", model=model, tools=tools)
            whole = await library.Runner.run(agent, ASKED)
            streamed = library.Runner.run_streamed(agent, ASKED)
            async for _ in streamed.stream_events():
                pass
            return [whole.final_output, streamed.final_output]

    assert asyncio.run(outputs()) == [SAID, SAID] and called == [CALLED, CALLED]


def test_llama_index(url: str) -> None:
    library = pytest.importorskip("llama_index.llms.openai_like")
    tools = pytest.importorskip("llama_index.core.tools")
    llm = library.OpenAILike(
        model="tiny",
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    asked: Any = {"tools": [tools.FunctionTool.from_defaults(get_weather)], "user_msg": ASKED}
    *_, streamed = llm.stream_chat_with_tools(**asked)
    for made in (llm.chat_with_tools(**asked), streamed):
        (call,) = llm.get_tool_calls_from_response(made)
        assert (call.tool_name, call.tool_kwargs) == ("get_weather", CALLED)
