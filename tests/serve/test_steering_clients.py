"""Each field that steers a thought, over HTTP by the clients that people build on: the answer is the library's own.

LangChain and pydantic-ai are skipped where they are not installed: the project does not need them.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from protocols import PATHS, Clients, clients
from serve_tools import served

from fastslow import LLM, SamplingParams
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

ASKED = (
    "a = 5; b = a + 12; c = b * 3; What is c?"  # abacus thinks 50 tokens, and its 25th ends a line
)
MOST, SAMPLED = 192, {"temperature": 0, "seed": 3}
BRIEF = {"base": "deep", "thinking_budget": 26}
PHASES: dict[str, Any] = {
    "thought": {"temperature": 1.0, "top_k": 5, "speculation": "off"},
    "answer": {"temperature": 0.2, "speculation": "ngram"},
}
WARNED = {"thinking_budget": 26, "warn_at": 0.8, "warning": "\nSoon over.\n"}
WISHES: dict[str, tuple[dict[str, Any], Any]] = {  # fields over HTTP, and the mode that they are
    "thought, answer": ({"mode": "deep", **PHASES}, {"base": "deep", **PHASES}),
    "loop": (
        {"loop": {"times": 2, "least": 16}},
        {"base": "deep", "loop": {"times": 2, "least": 16}},
    ),
    "answer_room": ({"answer_room": 160}, {"base": "deep", "answer_room": 160}),
    "warn_at, warning": (WARNED, {"base": "deep", **WARNED}),
    "turn_budget": ({"turn_budget": 30}, {"base": "deep", "turn_budget": 30}),
    "none": ({"reasoning_effort": "none"}, {"base": "fast", "thinking": "off"}),
    "low": ({"reasoning_effort": "low"}, BRIEF),
    "high": ({"reasoning_effort": "high"}, "deep"),
    "adaptive": ({"thinking": {"type": "adaptive"}}, "auto"),
    "enabled": ({"thinking": {"type": "enabled", "budget_tokens": 26}}, BRIEF),
    "disabled": ({"thinking": {"type": "disabled"}}, {"base": "deep", "thinking": "off"}),
}
Said = tuple[str, int]  # the answer's text, and how many tokens were thought


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("abacus", kv_memory="16MiB", progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(llm: LLM) -> Iterator[str]:
    config = ServerConfig(settings=ServerSettings(efforts={"low": BRIEF}))
    with served(create_app(LocalEngine(llm, "tiny"), config)) as url:
        yield url


@pytest.fixture(scope="module")
def official(url: str) -> Iterator[Clients]:
    with clients(url) as made:
        yield made


def check(llm: LLM, wish: str, ask: Callable[[dict[str, Any]], list[Said]]) -> None:
    """What a client is told, whole and streamed, and with the turn's name what its second call is told."""
    fields, mode = WISHES[wish]
    out = llm.chat(ASKED, SamplingParams(**SAMPLED, max_tokens=MOST), mode=mode, speculation="off")
    assert ask(fields) == [(out.text, out.metrics.thinking_tokens)] * 2
    if wish == "turn_budget":
        named = {"turn_budget": 70, "turn": f"of {ask}"}
        assert [thought for _, thought in ask(named)] == [50, 20]


@pytest.mark.parametrize("protocol", PATHS)
@pytest.mark.parametrize("wish", WISHES)
def test_official_clients(llm: LLM, official: Clients, wish: str, protocol: str) -> None:
    def ask(fields: dict[str, Any]) -> list[Said]:
        body: Any = {
            "input" if protocol == "responses" else "messages": [{"role": "user", "content": ASKED}]
        }
        body |= {"most": MOST, **SAMPLED, **fields}
        said = [official.ask(protocol, stream, **body) for stream in (False, True)]
        return [(one.text, one.tokens[2]) for one in said]

    check(llm, wish, ask)


@pytest.mark.slow
@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("wish", WISHES)
def test_langchain(llm: LLM, url: str, wish: str, responses: bool) -> None:
    library = pytest.importorskip("langchain_openai")

    def ask(fields: dict[str, Any]) -> list[Said]:
        body = {"seed": 3, **fields}
        own = {
            "reasoning_effort": body.pop("reasoning_effort", None),
            "use_responses_api": responses,
        }
        own |= {"base_url": f"{url}/v1", "api_key": "none", "stream_usage": True}
        own |= {"temperature": 0, "max_tokens": MOST, "extra_body": body}
        model = library.ChatOpenAI(model="tiny", **own)
        made = [model.invoke(ASKED), functools.reduce(operator.add, model.stream(ASKED))]
        thought = [one.usage_metadata["output_token_details"]["reasoning"] for one in made]
        return [(str(one.text), n) for one, n in zip(made, thought)]

    check(llm, wish, ask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
@pytest.mark.parametrize("wish", WISHES)
def test_pydantic_ai(llm: LLM, url: str, wish: str, kind: str) -> None:
    library = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    agent = library.Agent(getattr(models, kind)("tiny", provider=provider))

    def ask(fields: dict[str, Any]) -> list[Said]:
        body = {"seed": 3, **fields}
        own = {"max_tokens": MOST, "temperature": 0, "extra_body": body}
        if effort := body.pop("reasoning_effort", None):
            own["openai_reasoning_effort"] = effort

        async def both() -> list[Said]:
            made = await agent.run(ASKED, model_settings=own)
            said = [(made.output, made.usage.details.get("reasoning_tokens", 0))]
            async with agent.run_stream(ASKED, model_settings=own) as run:
                text = await run.get_output()
                return [*said, (text, run.usage.details.get("reasoning_tokens", 0))]

        return asyncio.run(both())

    check(llm, wish, ask)
