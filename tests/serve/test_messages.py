"""/v1/messages, asked by the official client: streamed, whole, and as /v1/chat/completions answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest
from serve_tools import named_events_of

CHAT: Any = [{"role": "user", "content": "The quick brown fox"}]
GREEDY = {"temperature": 0, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "seed": 11, "ignore_eos": True}
WHERE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Köln", "Ulm", 'a\n"b"']},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
# what the client has arguments for; all else goes into the body as it is
CLIENT = {"messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice"}
CLIENT |= {"thinking", "metadata", "output_config"}
TOOLS: Any = [{"name": "clock", "input_schema": {"type": "object"}}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in [*fields] if name not in CLIENT}
    given = {"model": "tiny", "max_tokens": 24, "messages": CHAT, **fields}
    return client.messages.create(**given, extra_body=own)


def streamed(client: anthropic.Anthropic, **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in [*fields] if name not in CLIENT}
    given = {"model": "tiny", "max_tokens": 24, "messages": CHAT, **fields}
    with client.messages.stream(**given, extra_body=own) as stream:
        for _ in stream:
            pass
        return stream.get_final_message()


def blocks(message: Any) -> list[dict[str, Any]]:
    """The content; calls without their ids, which are made up anew each time."""
    return [block.model_dump(exclude={"id", "parsed_output"}) for block in message.content]


def texts(message: Any) -> tuple[str, str]:
    thought = "".join(block.thinking for block in message.content if block.type == "thinking")
    return thought, "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize(
    ("fields", "speculation"),
    [
        (GREEDY, "off"),
        (SAMPLED, "auto"),
        ({**GREEDY, "mode": "fast"}, {"drafter": "self", "nodes": 3}),
        ({**GREEDY, "thinking": {"type": "enabled", "budget_tokens": 4}}, "off"),
        ({**SAMPLED, "thinking": {"type": "disabled"}, "top_k": 40, "top_p": 0.9}, "auto"),
        (
            {**GREEDY, "mode": {"groups": 1}, "thinking_budget": 3, "repetition_penalty": 1.3},
            {"drafter": "self", "nodes": 3},
        ),
    ],
)
def test_streamed_is_whole_is_what_a_chat_answers(
    client: anthropic.Anthropic, http: httpx.Client, fields: dict[str, Any], speculation: Any
) -> None:
    fields = {**fields, "speculation": speculation}
    made = ask(client, **fields)
    other = streamed(client, **fields)
    assert blocks(made) == blocks(other)
    assert (made.stop_reason, made.stop_sequence) == (other.stop_reason, other.stop_sequence)
    chat = http.post(
        "/v1/chat/completions", json={"messages": CHAT, "max_tokens": 24, **fields}
    ).json()
    message, usage = chat["choices"][0]["message"], chat["usage"]
    assert texts(made) == (message.get("reasoning", ""), message["content"])
    assert made.stop_reason == "max_tokens" and made.role == "assistant" and made.model == "tiny"
    for told in (made.usage, other.usage):
        assert told.input_tokens + told.cache_read_input_tokens == usage["prompt_tokens"]
        assert told.cache_creation_input_tokens == 0
        assert told.output_tokens == usage["completion_tokens"] == 24
        details = usage["completion_tokens_details"]
        assert told.output_tokens_details.thinking_tokens == details["reasoning_tokens"]


def test_events_come_in_the_order_that_clients_expect(http: httpx.Client) -> None:
    body = {"messages": CHAT, "max_tokens": 12, "stream": True, "thinking_budget": 3, **GREEDY}
    answer = http.post("/v1/messages", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    start, ping, *middle, delta, stop = named_events_of(answer.text)
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] > 0
    assert ping == {"type": "ping"} and stop == {"type": "message_stop"}
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 12 and delta["metrics"]["finish_reason"] == "length"
    open_, seen = None, list[str]()
    for event in middle:
        match event["type"]:
            case "content_block_start":
                assert open_ is None and event["index"] == len(seen)
                open_ = event["index"]
                seen.append(event["content_block"]["type"])
            case "content_block_delta":
                assert event["index"] == open_
            case "content_block_stop":
                assert event["index"] == open_
                open_ = None
    assert open_ is None and seen == ["thinking", "text"]


def test_a_conversation_is_read_as_a_chat_s(
    client: anthropic.Anthropic, http: httpx.Client
) -> None:
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "?"},
                {"type": "thinking", "thinking": "c", "signature": ""},
                {"type": "text", "text": "d"},
                {"type": "tool_use", "id": "x", "name": "clock", "input": {"zone": "UTC"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "x", "content": "noon"},
                {"type": "text", "text": "e"},
            ],
        },
    ]
    function = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    call = {"id": "x", "type": "function", "function": function}
    same = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "d", "reasoning": "c", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "noon"},
        {"role": "user", "content": "e"},
    ]
    chat = http.post("/v1/chat/completions", json={"messages": same, "max_tokens": 8, **GREEDY})
    fields: Any = {"system": system, "messages": messages}
    made = ask(client, **fields, max_tokens=8, **GREEDY)
    message = chat.json()["choices"][0]["message"]
    assert texts(made) == (message.get("reasoning", ""), message["content"])
    total = made.usage.input_tokens + made.usage.cache_read_input_tokens
    assert total == chat.json()["usage"]["prompt_tokens"]
    assert client.messages.count_tokens(model="tiny", **fields).input_tokens == total
    again = ask(client, **{**fields, "system": "Be brief."}, max_tokens=8, **GREEDY)
    assert blocks(again) == blocks(made)
    assert again._request_id.startswith("req-")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief.", "thinking": {"type": "disabled"}},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
    ],
)
def test_tokens_are_counted_as_they_are_used(
    client: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    counted = client.messages.count_tokens(model="tiny", messages=CHAT, **fields).input_tokens
    usage = ask(client, **fields, cache_salt=f"new: {[*fields]}", max_tokens=4).usage
    assert usage.cache_read_input_tokens == 0 and usage.input_tokens == counted
    usage = ask(client, **fields, cache_salt=f"new: {[*fields]}", max_tokens=4).usage
    assert usage.cache_read_input_tokens + usage.input_tokens == counted


def test_an_answer_goes_on_from_the_assistant_s_last_message(
    client: anthropic.Anthropic, http: httpx.Client
) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "jumps over"}]
    same = [*CHAT, {"role": "assistant", "content": "jumps over", "prefix": True}]
    made = ask(client, messages=begun, **GREEDY)
    chat = http.post(
        "/v1/chat/completions", json={"messages": same, "max_tokens": 24, **GREEDY}
    ).json()
    assert texts(made)[1] == chat["choices"][0]["message"]["content"]
    total = made.usage.input_tokens + made.usage.cache_read_input_tokens
    assert total == chat["usage"]["prompt_tokens"]


def test_why_an_answer_ends(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {**GREEDY, "thinking": {"type": "disabled"}}
    text = texts(ask(client, **fields))[1]
    stop = text[8:11]
    made = ask(client, **fields, stop_sequences=["never\x00", stop])
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
    assert texts(made)[1] == text[: text.index(stop)]
    ended = ask(client, **fields, guided_choice=["yes"])
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)
    assert texts(ended)[1] == "yes"


def test_the_thought_can_be_left_out(client: anthropic.Anthropic) -> None:
    hidden: Any = {"type": "enabled", "budget_tokens": 6, "display": "omitted"}
    made = ask(client, **GREEDY, thinking=hidden)
    assert {block.type for block in made.content} == {"text"}
    assert made.usage.output_tokens_details.thinking_tokens > 0
    assert blocks(streamed(client, **GREEDY, thinking=hidden)) == blocks(made)


def test_answers_keep_to_a_schema(client: anthropic.Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": WHERE}}
    made = ask(client, output_config=form, thinking_budget=3, max_tokens=200, temperature=1, seed=2)
    jsonschema.validate(json.loads(texts(made)[1]), WHERE)
    low = ask(client, output_config={"effort": "minimal"}, max_tokens=4)
    assert low.metrics["mode"] == "fast"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens=0 must"),
    ({"messages": []}, "messages=[] must"),
    ({"messages": [{"role": "user", "content": []}, {"role": "x", "content": ""}]}, "[1].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image' is not read here"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "[0].text is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id is"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "name is missing"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}, "assistant"),
    ({"system": [{"type": "image"}]}, "system[0].type='image' is not read here"),
    ({"stop_sequences": [""]}, "stop_sequences[0]='' must"),
    ({"stop_sequences": ["a"] * 33}, "at most 32"),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "budget_tokens=-1 must"),
    ({"thinking": {"type": "disabled", "budget_tokens": 9}}, "thinking is off"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'; only 'custom'"),
    ({"tools": [{"name": "a b"}]}, "tools[0].name is 'a b'"),
    ({"tool_choice": {"type": "any"}}, "there are no tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}}, "not among the tools"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "schema' is missing"),
    ({"output_config": {"effort": "low"}, "reasoning_effort": "high"}, "contradict"),
    ({"max_token": 5}, "'max_token' is unknown"),
    ({"top_p": 2}, "top_p=2 must"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_bad_fields_are_the_client_s_error(
    client: anthropic.Anthropic, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, **fields)
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert said in body["error"]["message"]


def test_other_errors_have_the_client_s_own_kinds(
    client: anthropic.Anthropic, http: httpx.Client
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="gpt-9", max_tokens=1, messages=CHAT)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.count_tokens(
            model="tiny", messages=CHAT, extra_body={"max_tokens": 5, "stream": 1}
        )
    missing = http.post("/v1/messages", json={"messages": CHAT}).json()
    assert missing["error"]["message"] == "field 'max_tokens' is missing"
    assert http.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"
