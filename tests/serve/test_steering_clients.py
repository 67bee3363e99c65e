"""Each field that steers a thought, over HTTP by the official clients: the answer is the library's own."""

from collections.abc import Iterator
from typing import Any

import pytest
from protocols import PATHS, clients
from serve_tools import served

from fastslow import LLM, SamplingParams
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

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
    # other words for a mode: test_protocols.py and test_fields.py
    *((fields, {"base": "deep", **fields}) for fields in STEERED),
    ({"reasoning_effort": "low"}, BRIEF),
    ({"thinking": {"type": "enabled", "budget_tokens": 26}}, BRIEF),
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


@pytest.fixture(scope="module", params=WISHES, ids=str)
def wish(llm: LLM, request: pytest.FixtureRequest) -> tuple[dict[str, Any], Said]:
    """Fields, and what the library says under their mode."""
    fields, mode = request.param
    out = llm.chat(ASKED, SamplingParams(temperature=0, seed=3, max_tokens=MOST), mode=mode, speculation="off")
    return fields, (out.text, out.metrics.thinking_tokens)


def official(url: str, protocol: str, fields: dict[str, Any]) -> list[Said]:
    asked = ASKED if protocol == "responses" else [{"role": "user", "content": ASKED}]
    body = {"input" if protocol == "responses" else "messages": asked, "most": MOST, **fields}
    with clients(url) as made:
        said = [made.ask(protocol, stream, temperature=0, **body) for stream in (False, True)]
    return [(one.text, one.tokens[2]) for one in said]


@pytest.mark.drafts(5, accepted=0)
@pytest.mark.parametrize("protocol", PATHS)
def test_an_answer_is_the_librarys_own(url: str, wish: tuple[dict[str, Any], Said], protocol: str) -> None:
    """Whole and streamed; of a turn that has a name, the second call has what the first one left."""
    fields, right = wish
    assert official(url, protocol, {"seed": 3, **fields}) == [right] * 2
    if "turn_budget" in fields:
        named = official(url, protocol, {"turn_budget": 70, "turn": protocol})
        assert [thought for _, thought in named] == [50, 20]
