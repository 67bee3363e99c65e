"""Each field that steers a thought, over HTTP by the official clients, and by frameworks where they are installed (the
project does not need them): the answer is the library's own."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from protocols import PATHS, clients
from serve_tools import served

from fastslow import LLM, SamplingParams
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

ASKED = "a = 5; b = a + 12; c = b * 3; What is c?"  # abacus thinks 50 tokens; the 25th ends a line
MOST = 192
STEERED: list[dict[str, Any]] = [
    {"thought": {"temperature": 1.0, "top_k": 5, "speculation": "off"},
        "answer": {"temperature": 0.2, "speculation": "ngram"}},
    {"thinking_budget": 26, "warn_at": 0.8, "warning": "\nSoon over.\n"},
    {"loop": {"times": 2, "least": 16}},
    {"confidence": {"every": 4}},
    {"answer_room": 160},
    {"turn_budget": 30},
]  # fmt: skip
BRIEF = {"base": "deep", "thinking_budget": 26}
WISHES: list[tuple[dict[str, Any], Any]] = [  # fields over HTTP, and the mode that they are
    *((fields, {"base": "deep", **fields}) for fields in STEERED),
    ({"reasoning_effort": "none"}, {"base": "fast", "thinking": "off"}),
    ({"reasoning_effort": "low"}, BRIEF),
    ({"reasoning_effort": "high"}, "deep"),
    ({"thinking": {"type": "adaptive"}}, "auto"),
    ({"thinking": {"type": "enabled", "budget_tokens": 26}}, BRIEF),
    ({"thinking": {"type": "disabled"}}, {"base": "deep", "thinking": "off"}),
]
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


def official(url: str, protocol: str, fields: dict[str, Any]) -> list[Said]:
    asked = ASKED if protocol == "responses" else [{"role": "user", "content": ASKED}]
    body = {"input" if protocol == "responses" else "messages": asked, "most": MOST, **fields}
    with clients(url) as made:
        said = [made.ask(protocol, stream, temperature=0, **body) for stream in (False, True)]
    return [(one.text, one.tokens[2]) for one in said]


def langchain(url: str, kind: str, fields: dict[str, Any]) -> list[Said]:
    library, body = pytest.importorskip("langchain_openai"), {**fields}
    own = {"model": "tiny", "base_url": f"{url}/v1", "api_key": "none", "stream_usage": True}
    own |= {"temperature": 0, "max_tokens": MOST, "use_responses_api": kind == "responses"}
    own |= {"reasoning_effort": body.pop("reasoning_effort", None), "extra_body": body}
    model = library.ChatOpenAI(**own)
    made = [model.invoke(ASKED), functools.reduce(operator.add, model.stream(ASKED))]
    usage = [one.usage_metadata["output_token_details"] for one in made]
    return [(str(one.text), each["reasoning"]) for one, each in zip(made, usage)]


def pydantic_ai(url: str, kind: str, fields: dict[str, Any]) -> list[Said]:
    library, body = pytest.importorskip("pydantic_ai"), {**fields}
    parts = (f"pydantic_ai.{name}.openai" for name in ("models", "providers"))
    models, providers = map(pytest.importorskip, parts)
    provider = providers.OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    agent = library.Agent(getattr(models, kind)("tiny", provider=provider))
    own = {"max_tokens": MOST, "temperature": 0, "extra_body": body}
    if effort := body.pop("reasoning_effort", None):
        own["openai_reasoning_effort"] = effort

    async def both() -> list[Said]:
        made = await agent.run(ASKED, model_settings=own)
        async with agent.run_stream(ASKED, model_settings=own) as run:
            said = [(made.output, made.usage), (await run.get_output(), run.usage)]
        return [(text, usage.details.get("reasoning_tokens", 0)) for text, usage in said]

    return asyncio.run(both())


SLOW = [(langchain, "chat"), (langchain, "responses")]
SLOW += [(pydantic_ai, "OpenAIChatModel"), (pydantic_ai, "OpenAIResponsesModel")]
CLIENTS = [pytest.param(official, protocol) for protocol in PATHS]
CLIENTS += [pytest.param(*one, marks=pytest.mark.slow) for one in SLOW]


@pytest.mark.drafts(5, accepted=0)
@pytest.mark.parametrize(("ask", "kind"), CLIENTS)
@pytest.mark.parametrize(("fields", "mode"), WISHES)
def test_an_answer_is_the_librarys_own(
    llm: LLM, url: str, fields: Any, mode: Any, ask: Callable[..., list[Said]], kind: str
) -> None:
    """Whole and streamed; of a turn that has a name, the second call has what the first one left."""
    params = SamplingParams(temperature=0, seed=3, max_tokens=MOST)
    out = llm.chat(ASKED, params, mode=mode, speculation="off")
    asked = ask(url, kind, {"seed": 3, **fields})
    assert asked == [(out.text, out.metrics.thinking_tokens)] * 2
    if "turn_budget" in fields:
        named = ask(url, kind, {"turn_budget": 70, "turn": f"{ask.__name__} {kind}"})
        assert [thought for _, thought in named] == [50, 20]
