"""Chats, messages and responses, asked by the official clients: the same answers, streamed and whole."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from pairs import pairwise
from protocols import CHAT, GREEDY, PATHS, SAMPLED, WHERE, Clients, Said, body_of, clients
from serve_tools import events_of, named_events_of

from fastslow import LLM, SamplingParams
from fastslow.engine.text.switches import EFFORTS

TOOLS: Any = [{"name": "clock", "input_schema": {"type": "object"}}]
BRIEF = {"most": 12, "thinking_budget": 3}
SELF = {"drafter": "self", "groups": 3, "nodes": 3}
DRAWN: list[dict[str, Any]] = [
    GREEDY,
    {**SAMPLED, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3},
    {**SAMPLED, "presence_penalty": 1.5, "frequency_penalty": 0.5, "min_p": 0.05},
]
MODES: list[dict[str, Any]] = [
    {"base": "deep"}, {"base": "fast", "thinking_budget": 3}, {"base": "deep", "thinking_budget": 4},
    {"base": "deep", "groups": 1, "thinking": "off"},
]  # fmt: skip


@pytest.fixture(scope="module")
def served_by(url: str) -> Iterator[Clients]:
    with clients(url) as made:
        yield made


@pytest.mark.drafts(10, 2)
@pytest.mark.parametrize(
    ("protocol", "drawn", "mode", "speculation"),
    pairwise([*PATHS], DRAWN, MODES, ["off", SELF, {"drafter": "suffix|self", "groups": 3}]),
)
def test_streamed_is_whole_is_the_library_s_own(
    served_by: Clients, llm: LLM, protocol: str, drawn: Any, mode: Any, speculation: Any
) -> None:
    fields = {**drawn, "mode": mode, "speculation": speculation}
    out = llm.chat(CHAT, SamplingParams(**drawn, max_tokens=24), mode=mode, speculation="off")
    counts = len(out.prompt_token_ids), len(out.token_ids), out.metrics.thinking_tokens
    right = Said(out.reasoning, out.text, [], str(out.finish_reason), counts)
    assert served_by.ask(protocol, **fields) == right == served_by.ask(protocol, True, **fields)


def streamed(served_by: Clients, protocol: str, **fields: Any) -> str:
    body = body_of(protocol, stream=True, **GREEDY, **fields)
    answer = served_by.http.post(PATHS[protocol], json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


def test_chunks_come_in_the_order_that_clients_expect(served_by: Clients) -> None:
    chunks = events_of(streamed(served_by, "chat", stream_options={"include_usage": True}))
    first, *_, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["delta"] == {} and finish["choices"][0]["finish_reason"] == "length"
    assert finish["metrics"]["mode"] == "deep" and finish["metrics"]["ttft"] > 0
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 24
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None} and len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "usage" not in events_of(streamed(served_by, "chat"))[0]


def test_events_of_messages_come_in_the_order_that_clients_expect(served_by: Clients) -> None:
    start, ping, *middle, delta, stop = named_events_of(streamed(served_by, "messages", **BRIEF))
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] > 0
    assert ping == {"type": "ping"} and stop == {"type": "message_stop"}
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == 12 and delta["metrics"]["finish_reason"] == "length"
    kinds = [(e["type"].removeprefix("content_block_"), e["index"]) for e in middle]
    block = ["start", "delta", "stop"]
    assert [*dict.fromkeys(kinds)] == [(kind, index) for index in (0, 1) for kind in block]
    assert [event["content_block"]["type"] for event in middle if "content_block" in event] == ["thinking", "text"]


def test_events_of_responses_come_in_the_order_that_clients_expect(served_by: Clients) -> None:
    events = named_events_of(streamed(served_by, "responses", **BRIEF))
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


CLOCK = {"name": "clock", "arguments": '{"zone":"UTC"}'}
CALL: dict[str, Any] = {"id": "x", "type": "function", "function": CLOCK}
SAME: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "a\nb"},
    {"role": "assistant", "content": "d", "reasoning": "c", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "x", "content": "noon"}, {"role": "user", "content": "e"},
]  # fmt: skip
A_AND_B = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": A_AND_B},
        {**SAME[3], "refusal": None, "audio": None},
        {"role": "tool", "tool_call_id": "x", "content": "noon"},
        {"role": "user", "content": "e", "name": "Eve"},
    ]},
    "messages": {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": A_AND_B},
            {"role": "assistant", "content": [
                {"type": "redacted_thinking", "data": "?"},
                {"type": "thinking", "thinking": "c", "signature": ""},
                {"type": "text", "text": "d"},
                {"type": "tool_use", "id": "x", "name": "clock", "input": {"zone": "UTC"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "x", "content": "noon"},
                {"type": "text", "text": "e"},
            ]},
        ],
    },
    "responses": {
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "a\nb"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
                "content": [{"type": "reasoning_text", "text": "c"}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                "content": [{"type": "output_text", "text": "d", "annotations": []}]},
            {"type": "function_call", "call_id": "x", **CLOCK},
            {"type": "function_call_output", "call_id": "x", "output": "noon"},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "?"},
            {"type": "message", "role": "user", "content": "e"},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("protocol", PATHS)
def test_every_message_of_a_conversation_is_read(served_by: Clients, llm: LLM, protocol: str) -> None:
    conversation = CONVERSATIONS[protocol]
    same = SAME if protocol != "messages" else [SAME[0], *SAME[2:]]
    made = served_by.ask(protocol, most=8, **GREEDY, **conversation)
    assert made == served_by.ask("chat", most=8, **GREEDY, messages=same)
    if protocol == "messages":
        assert served_by.claude.messages.count_tokens(model="tiny", **conversation).input_tokens == made.tokens[0]
        assert served_by.ask(protocol, most=8, **{**conversation, "system": "Be brief."}, **GREEDY) == made
    elif protocol == "chat":
        plain: Any = [SAME[0], SAME[2], SAME[5]]
        said = {"messages": [conversation["messages"][i] for i in (0, 2, 5)]}
        tokens = served_by.http.post("/tokenize", json=said).json()["tokens"]
        assert tokens == llm.chat(plain, SamplingParams(max_tokens=3)).prompt_token_ids


HIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("chat", {"include_reasoning": False}),
    ("chat", {"reasoning": {"exclude": True}}),
    ("chat", {"extra_body": {"google": {"thinking_config": {"include_thoughts": False}}}}),
    ("messages", {"thinking": {"type": "enabled", "budget_tokens": 6, "display": "omitted"}}),
]


@pytest.mark.parametrize(("protocol", "hidden"), HIDDEN)
def test_the_thought_can_be_left_out(served_by: Clients, protocol: str, hidden: dict[str, Any]) -> None:
    made = served_by.ask(protocol, **GREEDY, **hidden)
    assert made.thought == "" and made.tokens[2] > 0
    assert served_by.ask(protocol, True, **GREEDY, **hidden) == made


@pytest.mark.parametrize("protocol", PATHS)
def test_answers_keep_to_a_schema(served_by: Clients, protocol: str) -> None:
    form: dict[str, Any] = {"schema": WHERE}
    forms: dict[str, dict[str, Any]] = {
        "chat": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", **form}}},
        "messages": {"output_config": {"format": {"type": "json_schema", **form}}},
        "responses": {"text": {"format": {"type": "json_schema", "name": "n", "strict": True, **form}}},
    }
    fields: dict[str, Any] = {"thinking_budget": 3, "most": 200, "temperature": 1, "seed": 2}
    fields |= forms[protocol]
    made = served_by.ask(protocol, **fields)
    assert made.end == "stop" and made.thought
    jsonschema.validate(json.loads(made.text), WHERE)
    assert served_by.ask(protocol, True, **fields) == made


def test_many_at_once(url: str) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> tuple[str, str]:
        asked: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "seed": seed}
        asked["extra_body"] = {"mode": "fast"}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        texts = [c.delta.content or "" async for chunk in stream for c in chunk.choices]
        return "".join(texts), whole.choices[0].message.content or ""

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    pairs = asyncio.run(all_of_them())
    assert {streamed == whole for streamed, whole in pairs} == {True} and len({whole for _, whole in pairs}) > 8


@pytest.mark.parametrize("fields", [
    {}, {"system": "Be brief.", "thinking": {"type": "disabled"}}, {"tools": TOOLS, "tool_choice": {"type": "none"}},
    {"thinking": {"type": "adaptive"}},
])  # fmt: skip
def test_tokens_of_messages_are_counted_as_they_are_used(served_by: Clients, fields: dict[str, Any]) -> None:
    counted = served_by.claude.messages.count_tokens(model="tiny", messages=CHAT, extra_body=fields).input_tokens
    body = {**fields, "cache_salt": f"new: {[*fields]}", "messages": CHAT}
    for cached in (False, True):
        usage = served_by.made("messages", most=4, **body).usage
        assert usage.cache_read_input_tokens + usage.input_tokens == counted
        assert cached or usage.cache_read_input_tokens == 0


def test_a_message_continues_the_assistant_s_last_one(served_by: Clients) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "jumps over"}]
    same = [*CHAT, {"role": "assistant", "content": "jumps over", "prefix": True}]
    assert served_by.ask("messages", messages=begun, **GREEDY) == served_by.ask("chat", messages=same, **GREEDY)


def test_why_a_message_ends(served_by: Clients) -> None:
    fields: dict[str, Any] = {**GREEDY, "thinking": {"type": "disabled"}}
    text = served_by.ask("messages", **fields).text
    stop = text[8:11]
    made = served_by.made("messages", **fields, stop_sequences=["never\x00", stop])
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
    assert made.content[0].text == text[: text.index(stop)]
    ended = served_by.made("messages", **fields, guided_choice=["yes"])
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)
    assert ended.content[0].text == "yes" and ended._request_id.startswith("req-")


MODES_OF = {"none": "fast*", "minimal": "fast", "low": "deep*", "medium": "deep*"}


@pytest.mark.parametrize("effort", EFFORTS)
def test_the_official_clients_own_fields_say_how_to_think(served_by: Clients, effort: Any) -> None:
    gpt, claude, asked = served_by.gpt, served_by.claude, {"model": "tiny", "messages": CHAT}
    made: Any = gpt.chat.completions.create(**asked, reasoning_effort=effort, max_tokens=4)
    said = [made, gpt.responses.create(model="tiny", input=CHAT, reasoning={"effort": effort}, max_output_tokens=4)]
    for how in ({}, {"thinking": {"type": "adaptive"}}):
        if effort != "none" or not how:
            wish: Any = {"output_config": {"effort": effort}, "max_tokens": 4, **how}
            said.append(claude.messages.create(**asked, **wish))
    assert {one.metrics["mode"] for one in said} == {MODES_OF.get(effort, "deep")}


def test_what_is_asked_of_a_response_comes_back(served_by: Clients) -> None:
    given: dict[str, Any] = {"metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.9}
    given |= {"reasoning": {"effort": "low", "summary": "auto"}, "instructions": "Be brief."}
    given |= {"text": {"format": {"type": "json_object"}}}
    more = {"include": ["reasoning.encrypted_content"], "store": True, "cache_salt": "responses"}
    made = [served_by.made("responses", most=40, **given, **more) for _ in range(2)]
    whole = made[0].to_dict()
    assert {name: whole[name] for name in given if name not in ("text", "reasoning")} == {
        name: given[name] for name in given if name not in ("text", "reasoning")
    }
    assert (whole["text"]["format"]["type"], whole["reasoning"]["effort"]) == ("json_object", "low")
    assert whole["max_output_tokens"] == 40 and whole["store"] is False and whole["id"].startswith("resp_")
    cached = [one.usage.input_tokens_details.cached_tokens for one in made]
    assert cached[0] == 0 < cached[1]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": [*CHAT, {"role": "x", "content": ""}]}, "[1].role"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image' is not"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "[0].text is miss"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_"),
    ("messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "name is"),
    ("messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}, "assis"),
    ("messages", {"system": [{"type": "image"}]}, "system[0].type='image' is not read here"),
    ("messages", {"stop_sequences": ["a"] * 33}, "at most 32"),
    ("messages", {"thinking": {"type": "disabled", "budget_tokens": 9}}, "thinking is off"),
    ("messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "only 'custom'"),
    ("messages", {"tool_choice": {"type": "any"}}, "there are no tools"),
    ("messages", {"output_config": {"format": {"type": "json_schema"}}}, "schema' is missing"),
    ("messages", {"output_config": {"effort": "low"}, "reasoning_effort": "high"}, "contradict"),
    ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "is not read here"),
    ("responses", {"input": [{"type": "computer_call"}]}, "[0].type='computer_call' is not read her"),
    ("responses", {"input": [{"role": "user"}]}, "input[0].content is missing"),
    ("responses", {"input": [{"content": "a"}]}, "input[0].role is missing"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "is not read"),
    ("responses", {"input": [{"type": "function_call", "name": "f"}]}, "[0].arguments is missing"),
    ("responses", {"input": [{"type": "function_call_output", "output": "f"}]}, "call_id is missing"),
    ("responses", {"max_tokens": 5}, "'max_tokens' is unknown"),
    ("responses", {"tools": [{"type": "web_search"}]}, "'web_search'; only 'function'"),
    ("responses", {"tool_choice": "required"}, "there are no tools"),
    ("responses", {"text": {"format": {"type": "json_schema"}}}, "'text.format.schema' is missing"),
    ("responses", {"previous_response_id": "resp_1"}, "send the whole conversation as input"),
    ("responses", {"conversation": "conv_1"}, "send the whole conversation as input"),
    ("responses", {"prompt": {"id": "x"}}, "send the whole conversation as input"),
    ("responses", {"background": True}, "background=True must be false"),
    ("responses", {"include": ["message.output_text.logprobs"]}, "/v1/chat/completions alone"),
    ("responses", {"top_logprobs": 3}, "top_logprobs=3 must be left out"),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "fields", "said"), BAD)
def test_bad_fields_are_the_client_s_error(
    served_by: Clients, protocol: str, fields: dict[str, Any], said: str
) -> None:
    import anthropic

    with pytest.raises((anthropic.BadRequestError, openai.BadRequestError)) as caught:
        served_by.made(protocol, **fields)
    refused: Any = caught.value
    body = refused.body
    error = body["error"] if protocol == "messages" else body
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert refused.request_id is not None


def test_other_errors_have_the_clients_own_kinds(served_by: Clients) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        served_by.claude.messages.create(model="gpt-9", max_tokens=1, messages=CHAT)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        wrong = {"max_tokens": 5, "stream": 1}
        served_by.claude.messages.count_tokens(model="tiny", messages=CHAT, extra_body=wrong)
    missing = served_by.http.post("/v1/messages", json={"messages": CHAT}).json()
    assert missing["error"]["message"] == "field 'max_tokens' is missing"
    assert served_by.http.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        served_by.gpt.chat.completions.create(model="gpt-9", messages=CHAT)
    assert [model.id for model in served_by.gpt.models.list()][:2] == ["tiny", "tiny:fast"]
    assert served_by.gpt.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        served_by.gpt.models.retrieve("gpt-9")
