"""Thoughts steered over HTTP, in every protocol, by an engine that thinks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_chat
from fastapi.testclient import TestClient
from gate import open_llm

from fastslow.engine.params import SamplingParams
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>"
USER = [{"role": "user", "content": "The quick"}]
WISH: dict[str, Any] = {"model": "tiny", "turn_budget": 20, "loop": True, "warn_at": 0.5}
WISH |= {"thought": {"temperature": 0, "speculation": "off"}, "answer": {"temperature": 0.9}}
WISH |= {"answer_room": 9, "speculation": "ngram"}
ROUTES: dict[str, tuple[dict[str, Any], str]] = {
    "chat/completions": ({"messages": USER, "max_tokens": 60}, "completion_tokens_details"),
    "responses": ({"input": USER, "max_output_tokens": 60}, "output_tokens_details"),
    "messages": ({"messages": USER, "max_tokens": 60}, "output_tokens_details"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = write_chat(tmp_path_factory.mktemp("steered"), TEMPLATE)
    with open_llm(folder, thinking_tags=("<think>", "</think>")) as llm:
        yield TestClient(create_app(LocalEngine(llm, "tiny")), base_url="http://localhost")


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_left_of_a_turn_is_in_the_usage(client: TestClient, route: str) -> None:
    body, details = ROUTES[route]
    left = []
    for budget in (12, 12, 12):
        answer = client.post(f"/v1/{route}", json={**WISH, **body, "turn": f"{route} 1", "thinking_budget": budget})
        assert answer.status_code == 200, answer.text
        left.append(answer.json()["usage"][details]["turn_budget_left"])
    assert left == [8, 0, 0]
    plain = client.post(f"/v1/{route}", json={"model": "tiny", **body}).json()
    assert "turn_budget_left" not in plain["usage"][details]


def test_thoughts_of_tool_calls_count_for_the_turn(client: TestClient) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": "", "reasoning_content": "hmm", "tool_calls": [call]}
    turn = [*USER, asked, {"role": "tool", "tool_call_id": "a", "content": "42"}]
    made = client.post("/v1/chat/completions", json={**WISH, "messages": turn, "max_tokens": 60}).json()["metrics"]
    assert 0 < made["thinking_tokens"] < 20 and made["thinking_ended"] == "turn"


@pytest.mark.parametrize("route", ROUTES)
def test_a_thought_whose_answer_is_settled_over_http(client: TestClient, route: str) -> None:
    asked = {
        **ROUTES[route][0],
        "model": "tiny",
        "temperature": 0,
        "logit_bias": {"4": -100},  # the model does not close it
        "confidence": {"every": 1, "tokens": 1, "sure": 0},
    }
    made = client.post(f"/v1/{route}", json=asked).json()["metrics"]
    assert made["thinking_ended"] == "confident" and made["probe_rows"] > 0 and 1 < made["thinking_tokens"] < 44


CLOSE, OPEN = 4, 3  # tokens of the tags
DRAWN: dict[str, Any] = {"temperature": 1, "logit_bias": {CLOSE: 4}}


@pytest.mark.parametrize("opening", ["<think>", "<think>\n", "", "<think>\n\n</think>\n\n"])
def test_tokens_of_thoughts_that_the_template_opens(tmp_path: Path, opening: str) -> None:
    """A closing tag where no thought is open tells that the answer began inside one."""
    mode = {"base": "deep", "answer_room": None}
    opens, counted = opening.strip().endswith("<think>"), []
    with open_llm(write_chat(tmp_path, TEMPLATE.replace("<think>", opening))) as llm:
        client = TestClient(create_app(LocalEngine(llm, "tiny")), base_url="http://localhost")
        for seed in range(8):
            ids = llm.chat(USER, SamplingParams(**DRAWN, max_tokens=60, seed=seed), mode=mode).token_ids
            if OPEN in ids:  # a second thought, whose tokens count too
                continue
            right = ids.index(CLOSE) if CLOSE in ids else len(ids) if opens else 0
            route = [*ROUTES][seed % len(ROUTES)]
            body, details = ROUTES[route]
            wish = {"model": "tiny", "mode": mode, "seed": seed, **DRAWN, **body}
            usage = client.post(f"/v1/{route}", json=wish).json()["usage"][details]
            assert usage.get("reasoning_tokens", usage.get("thinking_tokens")) == right
            counted.append(right)
    assert len({*counted}) > 2


@pytest.mark.parametrize(("fields", "said"), [
    ({"turn_budget": -1}, "turn_budget=-1 must be"),
    ({"warn_at": 2}, "warn_at=2 must be"),
    ({"answer_room": "all"}, "answer_room"),
    ({"loop": {"times": 0}}, "loop.times=0 must be"),
    ({"confidence": {"every": 0}}, "confidence.every=0 must be"),
    ({"confidence": {"every": 1}}, "confidence.every=1 must be at least 2 with tokens=8"),
    ({"mode": {"confidence": {"tokens": 17}}}, "confidence.tokens=17 is above 16"),
    ({"confidence": {"times": 64}}, "confidence.times=64 is above 16"),
    ({"confidence": {"prefix": "a" * 65}}, "above 64, the most that clients may ask"),
    ({"thought": {"temperature": 1000}}, "thought.temperature=1000 must be"),
    ({"mode": {"answer": {"temperature": 3}}}, "answer.temperature=3 must be less than or equal"),
    ({"answer": {"max_tokens": 3}}, "answer.max_tokens' is unknown"),
    ({"turn": ""}, "turn='' must have at least 1 character"),
], ids=str)  # fmt: skip
def test_one_sentence_for_what_does_not_fit(client: TestClient, fields: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": USER, **fields})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]
