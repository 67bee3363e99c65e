"""What an answer, /v1/stats and /metrics tell of how it came about: the same figures, whole and streamed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serve_tools import events_of

from fastslow.llm import LLM

# of a text that no other test asks for
CHAT = [
    {"role": "user", "content": "Seven sheep sleep by the sea, and seven more walk home alone."}
]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
NGRAM = {"drafter": "ngram", "nodes": 4}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json={"messages": CHAT, **GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_tells_mode_drafts_and_what_was_predicted(
    http: httpx.Client, streamed: bool
) -> None:
    mode = {"base": "deep", "thinking": "off"}
    plain = ask(http, speculation="off", mode=mode)
    text = plain["choices"][0]["message"]["content"]
    assert text
    fields: dict[str, Any] = {
        "speculation": NGRAM,
        "prediction": {"type": "content", "content": text},
        "mode": mode,
    }
    if streamed:
        body = {**GREEDY, **fields, "stream": True, "stream_options": {"include_usage": True}}
        answer = http.post("/v1/chat/completions", json={"messages": CHAT, **body})
        chunks = events_of(answer.text)
        metrics = next(chunk["metrics"] for chunk in chunks if chunk.get("metrics"))
        usage = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
    else:
        made = ask(http, **fields)
        assert made["choices"][0]["message"]["content"] == text
        metrics, usage = made["metrics"], made["usage"]
    assert metrics["mode"].startswith("deep") and metrics["decision"] == "", "the caller chose"
    assert metrics["drafter"] == "ngram" and metrics["ttft"] > 0
    assert metrics["tokens"] == 24 == usage["completion_tokens"]
    assert metrics["tokens_per_step"] == pytest.approx(24 / metrics["steps"])
    drafts = metrics["by_drafter"]
    predicted = drafts["prediction"]
    assert predicted["accepted"] > 0 and metrics["tokens_per_step"] > 1
    for name, total in (("drafted", metrics["drafted"]), ("accepted", metrics["accepted"])):
        assert sum(one[name] for one in drafts.values()) == total
    assert sum(predicted["accepted_at"]) == predicted["accepted"]
    assert len(predicted["offered_at"]) >= len(predicted["accepted_at"])
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == predicted["accepted"]
    assert details["rejected_prediction_tokens"] == metrics["prediction_rejected"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == metrics["cached_tokens"] > 0


def test_an_answer_tells_why_it_got_its_mode(http: httpx.Client) -> None:
    metrics = ask(http, mode="auto")["metrics"]
    assert metrics["mode"] in ("fast", "deep") and metrics["decision"]


def test_the_engine_and_the_metrics_tell_it_by_mode(http: httpx.Client, llm: LLM) -> None:
    before = http.get("/v1/stats").json()["modes"].get("fast") or {"cached_tokens": 0}
    first = ask(http, mode="fast", speculation=NGRAM)
    again = ask(http, mode="fast", speculation=NGRAM)
    cached = sum(one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (first, again))
    stats = http.get("/v1/stats").json()
    fast = stats["modes"]["fast"]
    assert fast["cached_tokens"] - before["cached_tokens"] == cached > 0
    assert fast["prefix_hits"] > 0 and fast["first_token"]["count"] >= 2
    assert sum(fast["accepted_at"]) == fast["accepted"] <= fast["drafted"]
    assert stats["pages_pinned"] == 0
    text = http.get("/metrics").text
    for name in ("prefix_hits_total", "cached_tokens_total", "prompt_tokens_total"):
        assert f'fastslow:{name}{{mode="fast",model_name="tiny"}}' in text
    assert "fastslow:kv_pages_pinned" in text
