"""/v1/chat/completions: what this protocol alone has: n answers, log-probabilities, sources, figures."""

from typing import Any

import httpx
import pytest
from protocols import CHAT, GREEDY, SAMPLED
from serve_tools import events_of

from fastslow import LLM, SamplingParams

NGRAM = {"drafter": "ngram", "nodes": 4}
COUNTED = {"stream": True, "stream_options": {"include_usage": True, "include_sources": True}}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 24, **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 24, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def test_several_answers_are_the_library_s_own(http: httpx.Client, llm: LLM) -> None:
    fields = {**SAMPLED, "n": 2, "stop": ["a", "zq"], "logit_bias": {"40": 5.0}}
    choices = ask(http, **fields, speculation="suffix")["choices"]
    chunks = [c for e in stream(http, **fields) for c in e["choices"]]
    out = llm.chat(CHAT, SamplingParams(**fields, max_tokens=24), mode="deep", speculation="off")
    assert len(choices) == 2
    for i, (choice, answer) in enumerate(zip(choices, out.choices)):
        message = choice["message"]
        assert (message["content"], message["reasoning"]) == (answer.text, answer.reasoning)
        assert choice["finish_reason"] == answer.finish_reason
        mine = [c["delta"] for c in chunks if c["index"] == i]
        assert "".join(delta.get("content", "") for delta in mine) == answer.text
        assert "".join(delta.get("reasoning", "") for delta in mine) == answer.reasoning


def test_cached_tokens_are_counted_and_0_on_a_miss(http: httpx.Client) -> None:
    salted = {**GREEDY, "cache_salt": "mine", "messages": [{"role": "user", "content": "x " * 40}]}
    details = [ask(http, **salted)["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert details[0] == {"cached_tokens": 0} and details[1]["cached_tokens"] > 0
    other = ask(http, **{**salted, "cache_salt": "another"})
    assert other["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_logprobs_have_the_exact_bytes_of_every_token(http: httpx.Client, llm: LLM) -> None:
    fields = {**SAMPLED, "thinking_budget": 0, "logprobs": True}
    content = ask(http, **fields, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    sampling = SamplingParams(**SAMPLED, logprobs=3, max_tokens=24)
    out = llm.chat(CHAT, sampling, mode={"base": "deep", "thinking_budget": 0})
    assert llm.tokenizer is not None and out.logprobs is not None
    right = [llm.tokenizer.token_bytes(token) for token in out.token_ids]
    assert [bytes(one["bytes"]) for one in content] == right
    for one, token, place in zip(content, out.token_ids, out.logprobs):
        assert one["logprob"] == pytest.approx(place[token], abs=1e-4)
        falling = [other["logprob"] for other in one["top_logprobs"]]
        assert len(falling) == 3 and falling == sorted(falling, reverse=True)
    choices = [choice for chunk in stream(http, **fields) for choice in chunk["choices"]]
    streamed = [entry for one in choices for entry in (one["logprobs"] or {"content": []})["content"]]
    assert [bytes(one["bytes"]) for one in streamed] == right
    assert {len(one["top_logprobs"]) for one in streamed} == {0}


def test_what_neither_client_nor_mode_says_is_the_server_s(http: httpx.Client) -> None:
    brief = ask(http, mode="brief", ignore_eos=True, max_tokens=None)
    assert brief["usage"]["completion_tokens"] == 3, "the mode's own max_tokens"
    again = ask(http, model="tiny:brief", ignore_eos=True, max_tokens=None)
    assert again["choices"][0]["message"] == brief["choices"][0]["message"], "greedy, too"
    unseeded = {ask(http, max_tokens=8)["choices"][0]["message"]["reasoning"] for _ in range(4)}
    assert len(unseeded) > 1, "without a mode's or client's word, the temperature is 1"


def test_timeouts_end_the_answer_and_tell_the_true_reason(http: httpx.Client) -> None:
    made = ask(http, **GREEDY, max_tokens=400, timeout=1e-6)
    assert made["choices"][0]["finish_reason"] == "length" and made["metrics"]["finish_reason"] == "timeout"


def test_sources_come_with_the_tokens_and_their_texts(http: httpx.Client) -> None:
    fields = {**SAMPLED, "mode": "fast", "max_tokens": 40}
    deltas = [c["delta"] for chunk in stream(http, **fields, **COUNTED) for c in chunk["choices"]]
    found = [delta for delta in deltas if "token_ids" in delta]
    assert sum(len(delta["token_ids"]) for delta in found) == 40
    for delta in found:
        assert len(delta["token_ids"]) == len(delta["token_texts"]) == len(delta["sources"])
    texts = "".join(text for delta in found for text in delta["token_texts"])
    said = "".join(delta.get("content", "") for delta in deltas)
    assert _ascii(said) == _ascii(texts) != ""  # other characters may be of several tokens
    plain = [c["delta"] for chunk in stream(http, **fields) for c in chunk["choices"]]
    assert not any({"token_texts", "token_ids"} & set(delta) for delta in plain)


def _ascii(text: str) -> str:
    return "".join(character for character in text if character.isascii())


@pytest.mark.drafts(8, 4, None)
def test_an_answer_has_mode_drafts_and_what_was_predicted(http: httpx.Client) -> None:
    mode = {"base": "deep", "thinking": "off"}
    fields = {**GREEDY, "mode": mode, "messages": [{"role": "user", "content": "Seven sheep."}]}
    text = ask(http, **fields, speculation="off")["choices"][0]["message"]["content"]
    fields |= {"speculation": NGRAM, "prediction": {"type": "content", "content": text}}
    made, chunks = ask(http, **fields), stream(http, **fields, **COUNTED)
    assert text and made["choices"][0]["message"]["content"] == text, "drafts change no token"
    for one in (made, {name: next(c[name] for c in chunks if c.get(name)) for name in ("metrics", "usage")}):
        metrics, usage = one["metrics"], one["usage"]
        assert metrics["mode"].startswith("deep") and metrics["decision"] == "", "as was asked"
        assert metrics["drafter"] == "ngram" and metrics["ttft"] > 0 and "runs" not in metrics
        assert metrics["tokens"] == 24 == usage["completion_tokens"]
        assert metrics["tokens_per_step"] == pytest.approx(24 / metrics["steps"])
        drafts = metrics["by_drafter"]
        predicted = drafts["prediction"]
        assert predicted["accepted"] > 0 and metrics["tokens_per_step"] > 1
        for name in ("drafted", "accepted"):
            assert sum(counts[name] for counts in drafts.values()) == metrics[name]
        assert sum(predicted["accepted_at"]) == predicted["accepted"]
        details = usage["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] == predicted["accepted"]
        assert details["rejected_prediction_tokens"] == metrics["prediction_rejected"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == metrics["cached_tokens"] > 0
    auto = ask(http, mode="auto")["metrics"]
    assert auto["mode"] in ("fast", "deep") and auto["decision"]


def test_the_engine_and_the_metrics_tell_it_by_mode(http: httpx.Client) -> None:
    before = http.get("/v1/stats").json()["modes"].get("fast") or {"cached_tokens": 0}
    fields = {**GREEDY, "mode": "fast", "speculation": NGRAM, "cache_salt": "by mode"}
    usages = [ask(http, **fields)["usage"]["prompt_tokens_details"] for _ in range(2)]
    stats = http.get("/v1/stats").json()
    fast = stats["modes"]["fast"]
    cached = sum(one["cached_tokens"] for one in usages)
    assert fast["cached_tokens"] - before["cached_tokens"] == cached > 0
    assert fast["prefix_hits"] > 0 and fast["first_token"]["count"] >= 2
    assert sum(fast["accepted_at"]) == fast["accepted"] <= fast["drafted"] and stats["pages_pinned"] == 0
    text = http.get("/metrics").text
    for name in ("prefix_hits_total", "cached_tokens_total", "prompt_tokens_total"):
        assert f'fastslow:{name}{{mode="fast",model_name="tiny"}}' in text
    assert "fastslow:kv_pages_pinned" in text


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/version", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    alike = ("content-type", "etag", "content-security-policy", "x-frame-options")
    assert [head.headers.get(name) for name in alike] == [whole.headers.get(name) for name in alike]
    assert http.head("/nothing").status_code == 404
    answer = http.head("/v1/chat/completions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert "head" not in str(http.get("/openapi.json").json()["paths"]["/health"])
