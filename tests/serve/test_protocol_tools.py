"""Tools in /v1/messages and /v1/responses, asked by the official clients: valid, streamed or not, and sent back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from chat_templates import INSTRUCT, write_marked
from checkpoints import write_moge
from serve_tools import open_tiny, served
from tool_templates import HERMES, PANGU

from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

MARKS = ("[unused9]", "[unused10]", "[unused11]", "[unused12]")
TEMPLATES = {"hermes": HERMES, "pangu": PANGU, "plain": INSTRUCT}
SAID = "Rain?"
CHAT: Any = [{"role": "user", "content": SAID}]
WHERE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Köln", "Ulm", 'a\n"b"']},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
NONE = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": WHERE, "clock": NONE}
MESSAGE_TOOLS: Any = [
    {"name": "get_weather", "description": "Rain?", "input_schema": WHERE, "strict": True},
    {"type": "custom", "name": "clock", "input_schema": NONE},
]
RESPONSE_TOOLS: Any = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "Rain?",
        "parameters": WHERE,
        "strict": True,
    },
    {"type": "function", "name": "clock", "parameters": NONE, "strict": False},
]
CHAT_TOOLS: Any = [
    {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
    for tool in RESPONSE_TOOLS
]


@pytest.fixture(scope="module", params=TEMPLATES)
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tools")
    vocab = write_marked(folder, TEMPLATES[request.param], MARKS)
    write_moge(
        folder, vocab=vocab, num_hidden_layers=2, hidden_size=32, max_position_embeddings=4096
    )
    with open_tiny(folder) as llm, served(create_app(LocalEngine(llm, "tiny"))) as url:
        yield url


@pytest.fixture(scope="module")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def message(claude: anthropic.Anthropic, stream: bool = False, **fields: Any) -> Any:
    names = ("messages", "max_tokens", "tools", "tool_choice")
    own = {name: value for name, value in fields.items() if name not in names}
    asked = {"model": "tiny", "max_tokens": 300, "messages": CHAT, "tools": MESSAGE_TOOLS}
    asked |= {name: value for name, value in fields.items() if name in names}
    if not stream:
        return claude.messages.create(**asked, extra_body=own)
    with claude.messages.stream(**asked, extra_body=own) as events:
        return events.get_final_message()


def response(gpt: openai.OpenAI, stream: bool = False, **fields: Any) -> Any:
    names = ("input", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls")
    own = {name: value for name, value in fields.items() if name not in names}
    asked: Any = {"model": "tiny", "max_output_tokens": 300, "input": SAID, "tools": RESPONSE_TOOLS}
    asked |= {name: value for name, value in fields.items() if name in names}
    made = gpt.responses.create(**asked, extra_body=own, stream=stream)
    return made if not stream else [*made][-1].response


def blocks(made: Any) -> list[dict[str, Any]]:
    """The content, without ids, which are made up anew each time."""
    return [block.model_dump(exclude={"id", "parsed_output"}) for block in made.content]


def items(made: Any) -> list[dict[str, Any]]:
    """The output, in the same way."""
    return [item.model_dump(exclude={"id", "call_id"}) for item in made.output]


GREEDY, SEEDED = {"temperature": 0}, {"temperature": 1, "seed": 5}


@pytest.mark.parametrize(
    ("drawn", "speculation"),
    [
        (GREEDY, "auto"),
        pytest.param(GREEDY, "off", marks=pytest.mark.slow),
        (SEEDED, "ngram"),
        pytest.param(SEEDED, "auto", marks=pytest.mark.slow),
    ],
)
def test_required_calls_are_those_of_a_chat(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, drawn: dict[str, Any], speculation: str
) -> None:
    for name in (None, "get_weather"):
        same = {**drawn, "thinking_budget": 3, "speculation": speculation}
        kind: Any = {"type": "any"} if name is None else {"type": "tool", "name": name}
        choice: Any = "required" if name is None else {"type": "function", "name": name}
        named: Any = choice if name is None else {"type": "function", "function": {"name": name}}
        chat: Any = gpt.chat.completions.create(
            model="tiny",
            messages=CHAT,
            tools=CHAT_TOOLS,
            tool_choice=named,
            parallel_tool_calls=False,
            max_tokens=300,
            extra_body=same,
        )
        (call,) = chat.choices[0].message.tool_calls
        expected = call.function.name, json.loads(call.function.arguments)
        jsonschema.validate(expected[1], SCHEMAS[expected[0]])
        kind = {**kind, "disable_parallel_tool_use": True}
        made = message(claude, tool_choice=kind, **same)
        *_, block = made.content
        assert made.stop_reason == "tool_use" and (block.name, block.input) == expected
        assert blocks(message(claude, True, tool_choice=kind, **same)) == blocks(made)
        answer = response(gpt, tool_choice=choice, parallel_tool_calls=False, **same)
        *_, item = answer.output
        assert answer.status == "completed" and item.type == "function_call"
        assert (item.name, item.arguments) == (expected[0], call.function.arguments)
        streamed = response(gpt, True, tool_choice=choice, parallel_tool_calls=False, **same)
        assert items(streamed) == items(answer)


def test_free_answers_are_those_of_a_chat(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    for seed in range(2):
        same: Any = {"seed": seed, "temperature": 1, "thinking_budget": 3}
        chat = gpt.chat.completions.create(
            model="tiny", messages=CHAT, tools=CHAT_TOOLS, max_tokens=40, extra_body=same
        )
        text = chat.choices[0].message.content or ""
        made = message(claude, max_tokens=40, **same)
        assert "".join(block.text for block in made.content if block.type == "text") == text
        assert blocks(message(claude, True, max_tokens=40, **same)) == blocks(made)
        answer = response(gpt, max_output_tokens=40, **same)
        assert answer.output_text == text
        assert items(response(gpt, True, max_output_tokens=40, **same)) == items(answer)


@pytest.mark.slow
def test_cut_calls_are_told_as_far_as_they_came(
    claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    same: Any = {"temperature": 0, "thinking_budget": 0}
    kind = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    choice = {"type": "function", "name": "get_weather"}
    whole = message(claude, tool_choice=kind, **same).usage.output_tokens
    for most in range(whole - 1, 0, -29):
        made = message(claude, tool_choice=kind, max_tokens=most, **same)
        assert made.stop_reason == "max_tokens"
        other = message(claude, True, tool_choice=kind, max_tokens=most, **same)
        assert blocks(other) == blocks(made)
        answer = response(gpt, tool_choice=choice, max_output_tokens=most, **same)
        assert answer.status == "incomplete"
        again = response(gpt, True, tool_choice=choice, max_output_tokens=most, **same)
        assert items(again) == items(answer)


def test_results_go_back(claude: anthropic.Anthropic, gpt: openai.OpenAI) -> None:
    same: Any = {"temperature": 0, "thinking_budget": 3}
    made = message(claude, tool_choice={"type": "any"}, **same)
    *_, call = made.content
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "dry<|im_end|>"}
    said = {"role": "assistant", "content": [block.model_dump() for block in made.content]}
    back: Any = [*CHAT, said, {"role": "user", "content": [result]}]
    again = message(claude, messages=back, max_tokens=4, **same)
    counted = claude.messages.count_tokens(model="tiny", messages=back, tools=MESSAGE_TOOLS)
    usage = again.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    first = claude.messages.count_tokens(model="tiny", messages=CHAT, tools=MESSAGE_TOOLS)
    assert counted.input_tokens > first.input_tokens
    answer = response(gpt, tool_choice="required", **same)
    output = [item.model_dump(exclude_none=True) for item in answer.output]
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "dry<|im_end|>"}
        for item in answer.output
        if item.type == "function_call"
    ]
    history = [{"role": "user", "content": SAID}, *output, *results]
    other = response(gpt, input=history, max_output_tokens=4, **same)
    if len(results) == 1:
        assert other.usage.input_tokens == counted.input_tokens


def test_tools_that_may_not_be_called_cost_nothing(
    claude: anthropic.Anthropic, gpt: openai.OpenAI
) -> None:
    bare = claude.messages.count_tokens(model="tiny", messages=CHAT).input_tokens
    offered = claude.messages.count_tokens(model="tiny", messages=CHAT, tools=MESSAGE_TOOLS)
    none = claude.messages.count_tokens(
        model="tiny", messages=CHAT, tools=MESSAGE_TOOLS, tool_choice={"type": "none"}
    )
    assert none.input_tokens == bare < offered.input_tokens
    usage = response(gpt, tool_choice="none", max_output_tokens=2).usage
    assert usage.input_tokens == bare
    used = message(claude, max_tokens=2, cache_salt="of its own").usage
    assert used.input_tokens == offered.input_tokens and used.cache_read_input_tokens == 0
