"""/v1/responses, asked by the official client: streamed, whole, and as /v1/chat/completions answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from serve_tools import named_events_of

SAID = "The quick brown fox"
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
CLIENT = {"input", "max_output_tokens", "instructions", "temperature", "top_p", "tools", "text"}
CLIENT |= {"tool_choice", "parallel_tool_calls", "reasoning", "metadata", "include", "store"}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def given(fields: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in fields.items() if name not in CLIENT}
    given = {name: value for name, value in fields.items() if name in CLIENT}
    return {"model": "tiny", "input": SAID, "max_output_tokens": 24, **given, "extra_body": own}


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**given(fields))


def streamed(client: openai.OpenAI, **fields: Any) -> Any:
    """The response that the last event has; its items must be those that the other events made."""
    items: dict[int, Any] = {}
    for number, event in enumerate(client.responses.create(**given(fields), stream=True)):
        assert event.sequence_number == number
        match event.type:
            case "response.output_item.added":
                assert event.output_index == len(items) and event.item.status == "in_progress"
                items[event.output_index] = [event.item.id, ""]
            case (
                "response.output_text.delta"
                | "response.reasoning_text.delta"
                | "response.function_call_arguments.delta"
            ):
                assert event.item_id == items[event.output_index][0]
                items[event.output_index][1] += event.delta
            case "response.output_text.done" | "response.reasoning_text.done":
                assert event.text == items[event.output_index][1]
            case "response.function_call_arguments.done":
                assert event.arguments == items[event.output_index][1]
            case "response.output_item.done":
                items[event.output_index] = event.item
    assert event.type == f"response.{event.response.status}"
    assert [*items.values()] == event.response.output
    return event.response


def items(response: Any) -> list[dict[str, Any]]:
    """The output, without ids, which are made up anew each time."""
    return [item.model_dump(exclude={"id", "call_id"}) for item in response.output]


def texts(response: Any) -> tuple[str, str]:
    thought = [i.content[0].text for i in response.output if i.type == "reasoning"]
    return "".join(thought), response.output_text


@pytest.mark.parametrize(
    ("fields", "speculation"),
    [
        (GREEDY, "off"),
        (SAMPLED, "auto"),
        ({**GREEDY, "mode": "fast"}, {"drafter": "self", "nodes": 3}),
        ({**GREEDY, "thinking_budget": 4}, "off"),
        ({**SAMPLED, "reasoning": {"effort": "none"}, "top_k": 40, "top_p": 0.9}, "auto"),
        (
            {**GREEDY, "mode": {"groups": 1}, "thinking_budget": 3, "repetition_penalty": 1.3},
            {"drafter": "self", "nodes": 3},
        ),
    ],
)
def test_streamed_is_whole_is_what_a_chat_answers(
    client: openai.OpenAI, http: httpx.Client, fields: dict[str, Any], speculation: Any
) -> None:
    fields = {**fields, "speculation": speculation}
    made, other = ask(client, **fields), streamed(client, **fields)
    assert items(made) == items(other)
    body = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 24, **fields}
    chat = http.post("/v1/chat/completions", json=body).json()
    message, usage = chat["choices"][0]["message"], chat["usage"]
    assert texts(made) == (message.get("reasoning", ""), message["content"])
    for response in (made, other):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[-1].status == "incomplete"
        assert response.metrics["finish_reason"] == "length"
        told = response.usage
        assert told.input_tokens == usage["prompt_tokens"]
        assert told.output_tokens == usage["completion_tokens"] == 24
        assert told.total_tokens == usage["total_tokens"]
        details = usage["completion_tokens_details"]
        assert told.output_tokens_details.reasoning_tokens == details["reasoning_tokens"]


def test_events_come_in_the_order_that_clients_expect(http: httpx.Client) -> None:
    body = {"input": SAID, "max_output_tokens": 12, "stream": True, "thinking_budget": 3, **GREEDY}
    answer = http.post("/v1/responses", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = named_events_of(answer.text)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    kinds = [event["type"].removeprefix("response.") for event in events]
    whole = ["content_part.added", "delta", "done", "content_part.done", "output_item.done"]
    expected = ["created", "in_progress"]
    for text in ("reasoning_text", "output_text"):
        named = [f"{text}.{kind}" if kind in ("delta", "done") else kind for kind in whole]
        expected += ["output_item.added", *named]
    assert [*dict.fromkeys(kinds)] == [*dict.fromkeys([*expected, "incomplete"])]
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        kind for kind in [*expected, "incomplete"] if not kind.endswith("delta")
    ]
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None


def test_the_client_s_own_stream_helper(client: openai.OpenAI) -> None:
    fields = given({"mode": "fast", "guided_choice": ["yes", "no"], "seed": 2})
    with client.responses.stream(**fields) as stream:
        kinds = {event.type for event in stream}
        made = stream.get_final_response()
    assert made.status == "completed" and made.output_text in ("yes", "no")
    assert (
        "response.output_text.delta" in kinds and made.output[-1].to_dict()["status"] == "completed"
    )
    assert made.output_text == client.responses.create(**fields).output_text


def test_a_conversation_is_read_as_a_chat_s(client: openai.OpenAI, http: httpx.Client) -> None:
    conversation = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "c"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "d", "annotations": []}],
        },
        {"type": "function_call", "call_id": "x", "name": "clock", "arguments": '{"zone":"UTC"}'},
        {"type": "function_call_output", "call_id": "x", "output": "noon"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "?"},
        {"type": "message", "role": "assistant", "content": "e"},
        {"type": "message", "role": "user", "content": "f"},
    ]
    function = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    call = {"id": "x", "type": "function", "function": function}
    same = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "d", "reasoning": "c", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "noon"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": "f"},
    ]
    body = {"messages": same, "max_tokens": 8, **GREEDY}
    chat = http.post("/v1/chat/completions", json=body).json()
    fields = {"input": conversation, "instructions": "Be brief.", "max_output_tokens": 8}
    made = ask(client, **fields, **GREEDY)
    message = chat["choices"][0]["message"]
    assert texts(made) == (message.get("reasoning", ""), message["content"])
    assert made.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert made.instructions == "Be brief."


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_answers_keep_to_a_schema(client: openai.OpenAI, kind: str) -> None:
    form: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        form |= {"name": "where", "schema": WHERE, "strict": True}
    fields = {"text": {"format": form}, "thinking_budget": 3, "max_output_tokens": 200, "seed": 2}
    made = ask(client, **fields, temperature=1)
    if made.status == "completed":
        schema = WHERE if kind == "json_schema" else {"type": "object"}
        jsonschema.validate(json.loads(made.output_text), schema)
    assert kind == "json_object" or made.status == "completed"
    assert made.text.format.type == kind
    assert items(streamed(client, **fields, temperature=1)) == items(made)


def test_what_is_asked_comes_back(client: openai.OpenAI) -> None:
    made = ask(
        client,
        metadata={"a": "b"},
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=True,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=4,
    )
    assert made.metadata == {"a": "b"} and made.reasoning.effort == "low"
    assert (made.temperature, made.top_p, made.max_output_tokens) == (0.5, 0.9, 4)
    assert made.store is False and made.id.startswith("resp_")


def test_cached_tokens_are_told(client: openai.OpenAI) -> None:
    asked = {"input": "x " * 40, "cache_salt": "of these responses", "max_output_tokens": 2}
    told = [ask(client, **asked).usage.input_tokens_details.cached_tokens for _ in range(2)]
    assert told[0] == 0 and told[1] > 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input=[] must"),
    ({"input": 5}, "input=5 must"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "this server keeps no items"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type='computer_call' is not read here"),
    ({"input": [{"role": "user"}]}, "input[0].content is missing"),
    ({"input": [{"content": "a"}]}, "input[0].role is missing"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "is not read here"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments is missing"),
    ({"input": [{"type": "function_call_output", "output": "f"}]}, "input[0].call_id is missing"),
    ({"max_output_tokens": 0}, "max_output_tokens=0 must"),
    ({"max_tokens": 5}, "'max_tokens' is unknown"),
    ({"tools": [{"type": "web_search"}]}, "'web_search'; only 'function'"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"text": {"format": {"type": "json_schema"}}}, "'text.format.schema' is missing"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type='xml' must"),
    ({"previous_response_id": "resp_1"}, "send the whole conversation as input"),
    ({"conversation": "conv_1"}, "send the whole conversation as input"),
    ({"prompt": {"id": "x"}}, "this server keeps no prompts"),
    ({"background": True}, "background=True must be false"),
    ({"truncation": "auto"}, "truncation='auto' must"),
    ({"include": ["message.output_text.logprobs"]}, "/v1/chat/completions alone"),
    ({"top_logprobs": 3}, "top_logprobs=3 must be left out"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort='huge' must"),
    ({"metadata": {"a": 5}}, "metadata.a=5 must"),
    ({"temperature": -1}, "temperature=-1 must"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_bad_fields_are_the_client_s_error(
    client: openai.OpenAI, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert said in caught.value.message and caught.value.type == "invalid_request_error"


def test_nothing_is_kept(client: openai.OpenAI) -> None:
    made = ask(client, max_output_tokens=1)
    own = client.responses
    for act in (own.retrieve, own.delete, own.cancel, own.input_items.list):
        with pytest.raises(openai.NotFoundError, match="keeps no answers"):
            act(made.id)
