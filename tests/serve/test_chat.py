"""/v1/chat/completions: what is streamed, what comes whole, and what `LLM` says are one and the same."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from serve_tools import events_of

from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

CHAT = [{"role": "user", "content": "The quick brown fox"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 24, "ignore_eos": True}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json={"messages": CHAT, **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": CHAT, "stream": True, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


def joined(chunks: list[dict[str, Any]], field: str, index: int = 0) -> str:
    deltas = [c["delta"] for e in chunks for c in e["choices"] if c["index"] == index]
    return "".join(delta.get(field) or "" for delta in deltas)


@pytest.mark.parametrize(
    ("fields", "speculation"),
    [
        (GREEDY, "off"),
        (SAMPLED, "suffix"),
        ({**GREEDY, "mode": "fast", "thinking_budget": 3}, {"drafter": "self", "nodes": 3}),
        ({**GREEDY, "thinking_budget": 4}, "off"),
        ({**SAMPLED, "n": 2, "stop": ["a", "zq"]}, "suffix"),
        (
            {
                **SAMPLED,
                "presence_penalty": 1.5,
                "frequency_penalty": 0.5,
                "min_p": 0.05,
                "top_k": 40,
            },
            {"drafter": "self", "nodes": 3},
        ),
        (
            {**GREEDY, "logit_bias": {"40": 5.0}, "repetition_penalty": 1.3, "mode": {"groups": 1}},
            "off",
        ),
    ],
)
def test_streamed_is_whole_is_the_library_s_own(
    http: httpx.Client, llm: LLM, fields: dict[str, Any], speculation: Any
) -> None:
    whole = ask(http, speculation=speculation, **fields)
    chunks = stream(http, speculation=speculation, **fields)
    own = dict(fields)
    mode: Any = own.pop("mode", "deep")
    budget = own.pop("thinking_budget", None)
    mode = mode if isinstance(mode, dict) else {"base": mode}
    mode = {"base": "deep", **mode} | ({} if budget is None else {"thinking_budget": budget})
    out = llm.chat(CHAT, SamplingParams(**own), mode=mode, speculation="off")
    assert len(whole["choices"]) == fields.get("n", 1)
    for i, (choice, answer) in enumerate(zip(whole["choices"], out.choices)):
        message = choice["message"]
        assert message["content"] == answer.text == joined(chunks, "content", i)
        assert message.get("reasoning", "") == answer.reasoning == joined(chunks, "reasoning", i)
        assert joined(chunks, "reasoning_content", i) == answer.reasoning
        assert choice["finish_reason"] == answer.finish_reason
        ends = [c["finish_reason"] for e in chunks for c in e["choices"] if c["index"] == i]
        assert ends[-1] == answer.finish_reason and not any(ends[:-1])
    usage = whole["usage"]
    assert usage["prompt_tokens"] == len(out.prompt_token_ids)
    assert usage["completion_tokens"] == sum(len(c.token_ids) for c in out.choices)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    thought = sum(c.metrics.thinking_tokens for c in out.choices)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == thought


def test_chunks_come_in_the_order_that_clients_expect(http: httpx.Client) -> None:
    chunks = stream(http, **GREEDY, stream_options={"include_usage": True})
    first, *_, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["delta"] == {} and finish["choices"][0]["finish_reason"] == "length"
    assert finish["metrics"]["mode"] == "deep" and finish["metrics"]["ttft"] > 0
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 24
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "usage" not in stream(http, **GREEDY)[0]


def test_cached_tokens_are_told_and_0_on_a_miss(http: httpx.Client) -> None:
    salted = {
        **GREEDY,
        "cache_salt": "a salt of its own",
        "messages": [{"role": "user", "content": "x " * 40}],
    }
    details = [ask(http, **salted)["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert details[0] == {"cached_tokens": 0} and details[1]["cached_tokens"] > 0
    other = ask(http, **{**salted, "cache_salt": "another"})
    assert other["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_logprobs_have_the_exact_bytes_of_every_token(http: httpx.Client, llm: LLM) -> None:
    fields = {**SAMPLED, "thinking_budget": 0}
    whole = ask(http, **fields, logprobs=True, top_logprobs=3)
    content = whole["choices"][0]["logprobs"]["content"]
    out = llm.chat(
        CHAT, SamplingParams(**SAMPLED, logprobs=3), mode={"base": "deep", "thinking_budget": 0}
    )
    assert llm.tokenizer is not None and out.logprobs is not None
    assert [bytes(one["bytes"]) for one in content] == [
        llm.tokenizer.token_bytes(token) for token in out.token_ids
    ]
    for one, token, place in zip(content, out.token_ids, out.logprobs):
        assert one["logprob"] == pytest.approx(place[token], abs=1e-4)
        assert len(one["top_logprobs"]) == 3
        falling = [other["logprob"] for other in one["top_logprobs"]]
        assert falling == sorted(falling, reverse=True)
    chunks = stream(http, **fields, logprobs=True, top_logprobs=3)
    streamed = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [one["bytes"] for one in streamed] == [one["bytes"] for one in content]
    assert (
        ask(http, **fields, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        == []
    )


def test_every_message_of_a_conversation_is_read(http: httpx.Client, llm: LLM) -> None:
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning": "d", "refusal": None, "audio": None},
        {"role": "user", "content": "e", "name": "Eve"},
    ]
    count = http.post("/tokenize", json={"messages": chat}).json()
    same = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}]
    same += [{"role": "assistant", "content": "c"}, {"role": "user", "content": "e"}]
    out = llm.chat(same, SamplingParams(max_tokens=1))
    assert count["tokens"] == out.prompt_token_ids and count["count"] == len(count["tokens"])
    assert ask(http, **{**GREEDY, "messages": chat})["usage"]["prompt_tokens"] == count["count"]


def test_the_thought_can_be_left_out(http: httpx.Client) -> None:
    for hidden in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        message = ask(http, **GREEDY, **hidden)["choices"][0]["message"]
        assert "reasoning" not in message and "reasoning_content" not in message
        assert joined(stream(http, **GREEDY, **hidden), "reasoning") == ""


def test_what_neither_client_nor_mode_says_is_the_server_s(http: httpx.Client) -> None:
    brief = ask(http, mode="brief", ignore_eos=True)
    assert brief["usage"]["completion_tokens"] == 3, "the mode's own max_tokens"
    again = ask(http, model="tiny:brief", ignore_eos=True)
    assert again["choices"][0]["message"] == brief["choices"][0]["message"], (
        "greedy, as the mode says"
    )
    unseeded = {ask(http, max_tokens=8)["choices"][0]["message"]["reasoning"] for _ in range(4)}
    assert len(unseeded) > 1, "without a mode's or client's word, the temperature is 1"


def test_sources_come_with_the_tokens_they_are_of(http: httpx.Client) -> None:
    chunks = stream(http, **GREEDY, stream_options={"include_sources": True}, logprobs=True)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    told = [delta for delta in deltas if "token_ids" in delta]
    assert sum(len(delta["token_ids"]) for delta in told) == 24
    assert all("sources" in delta for delta in told)


def test_timeouts_end_the_answer_and_tell_the_true_reason(http: httpx.Client) -> None:
    made = ask(http, temperature=0, ignore_eos=True, max_tokens=400, timeout=1e-6)
    assert made["choices"][0]["finish_reason"] == "length"
    assert made["metrics"]["finish_reason"] == "timeout"


def test_acceptance_is_told_in_vllm_s_shape_too(http: httpx.Client) -> None:
    metrics = ask(http, **GREEDY, speculation={"drafter": "self", "nodes": 3})["metrics"]
    told = metrics["speculative_decoding"]
    assert told["num_draft_tokens"] == metrics["drafted"] > 0
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"] == metrics["steps"]
    assert sum(i * n for i, n in enumerate(told["acceptance_histogram"])) == metrics["accepted"]
    assert metrics["drafter"] == "self" and "runs" not in metrics


def test_a_prediction_is_drafted_and_changes_no_token(http: httpx.Client) -> None:
    letters = {
        str(token): 30.0 for token in range(72, 97)
    }  # so that the text reads back as its tokens
    fields = {**GREEDY, "mode": "fast", "speculation": {"drafter": "ngram", "nodes": 4}}
    fields |= {"logit_bias": letters, "cache_salt": "prediction"}
    plain = ask(http, **fields)
    said = plain["choices"][0]["message"]["content"]
    made = ask(http, **fields, prediction={"type": "content", "content": said})
    assert made["choices"][0]["message"] == plain["choices"][0]["message"]
    details = made["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0
    assert plain["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"grammar": 'root ::= "x" "y"'}}, "xy"),
        ({"guided_grammar": "start: /[x]{4}/"}, "xxxx"),
        ({"response_format": {"type": "json_object"}}, r"(?s)\{.*\}"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"enum": [1, 2]}},
                }
            },
            "[12]",
        ),
    ],
)
def test_answers_keep_to_a_grammar(http: httpx.Client, fields: dict[str, Any], form: str) -> None:
    plain = {"temperature": 0, "max_tokens": 60, "mode": "fast"}
    choice = ask(http, **plain, **fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(form, choice["message"]["content"])
