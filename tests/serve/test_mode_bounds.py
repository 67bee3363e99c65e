"""No field of a request enlarges what a key's modes limit, in any protocol."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve_tools import NAME, open_tiny, write_tiny

from fastslow.llm import LLM
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.keys import KeyLimits, KeyRing, add_key
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

SUPPORT = {"base": "deep", "thinking_budget": 8, "turn_budget": 12, "loop": {"times": 3}}
MODES: dict[str, Any] = {
    "support": SUPPORT, "quiet": {"base": "fast"}, "free": {"base": "support", "bounds": ["turn_budget"]},
    "leaping": {"base": "support", "escalate": {"to": "deep", "how": "keep", "below": 1, "window": 1}},
    "deep": {"thinking_budget": 4},
}  # fmt: skip
CHAT = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 40},
    "/v1/completions": {"prompt": "x<think>", "max_tokens": 40},
    "/v1/messages": {"messages": CHAT, "max_tokens": 40},
    "/v1/responses": {"input": "hi", "max_output_tokens": 40},
}
LOOSE = {"thinking_budget": None, "turn_budget": None, "loop": False, "answer_room": None}
WISHES: dict[str, tuple[dict[str, Any], int, str]] = {  # thought, and what the answer says of it
    "nothing": ({}, 8, ""),
    "less": ({"thinking_budget": 3}, 3, ""),
    "turn_budget": ({"turn_budget": 9000}, 8, "turn_budget stays 12"),
    "thinking_budget": ({"thinking_token_budget": 9000}, 8, "thinking_budget stays 8"),
    "no bounds at all": ({"mode": {"base": "support", **LOOSE}}, 8, "loop stays Loop(times=3"),
    "as Claude": ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, 8, "budget stays 8"),
    "no thought": ({"mode": "quiet", "thinking": {"type": "enabled"}}, 0, "thinking stays 'off'"),
    "no thought, a budget": ({"mode": "quiet", "thinking_budget": 9}, 0, "budget stays None"),
    "a preset's own": ({"mode": "free", "turn_budget": 99, "thinking_budget": 99}, 12, "stays 12"),
    "escalated": ({"mode": {"base": "leaping", **LOOSE, "thinking_budget": 99}}, 4, "thinking_budget stays 8"),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, LLM]]:
    folder = tmp_path_factory.mktemp("bounds")
    llm = open_tiny(write_tiny(folder), thinking_tags=("<think>", "</think>"), modes=MODES)
    keys: Path = folder / "keys.json"
    headers = {"x-api-key": add_key(keys, "bot", KeyLimits(modes=["support", "quiet", "free", "leaping"]))}
    config = ServerConfig(settings=ServerSettings(default_mode="support"))
    with llm, TestClient(create_app(LocalEngine(llm, NAME), config, KeyRing(keys))) as client:
        client.headers.update(headers)
        yield client, llm


PATHS = [*BODIES]  # a chat has every wish, each other path every third


@pytest.mark.parametrize(
    ("path", "wish"), [(path, wish) for n, wish in enumerate(WISHES) for path in (PATHS[0], PATHS[1 + (n + 2) % 3])]
)
def test_no_field_enlarges_what_a_keys_mode_limits(asked: tuple[TestClient, LLM], path: str, wish: str) -> None:
    fields, most, note = WISHES[wish]
    body = {**BODIES[path], "ignore_eos": True, "temperature": 0, **fields}
    answer = asked[0].post(path, json=body).json()
    made = answer.get("metrics") or answer["choices"][0]["metrics"]
    unheard = wish.startswith("no thought") and "messages" not in body and path != "/v1/responses"
    assert made["thinking_tokens"] <= most or unheard, "a text that opens a thought itself"
    assert note in made["decision"]


def test_what_makes_another_mode_is_refused(asked: tuple[TestClient, LLM]) -> None:
    chat, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]
    for wish in (
        {"reasoning_effort": "high"},
        {"mode": {"base": "support", "bounds": []}},
        {"mode": {"base": "support", "groups": None}},
    ):
        assert asked[0].post(chat, json={**body, **wish}).status_code == 403, wish


def test_bounds_hold_for_calls_and_are_known_fields(asked: tuple[TestClient, LLM]) -> None:
    ask = {"max_tokens": 40, "ignore_eos": True}
    wish = {"turn_budget": 99, "thinking_budget": 99}
    held = asked[1].chat("hi", ask, mode={"base": "free", **wish}).metrics
    assert held.thinking_tokens == 12 and "turn_budget stays 12" in held.decision
    freely = asked[1].chat("hi", ask, mode={"base": "support", **wish}).metrics
    assert freely.thinking_tokens > 12 and not freely.decision
    with pytest.raises(ValueError, match="mode.bounds: 'turn_budgt' is none; did you mean 'turn_b"):
        asked[1].chat("hi", mode={"base": "deep", "bounds": ["turn_budgt"]})
