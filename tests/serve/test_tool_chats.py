"""Tools in chats, asked by the official client: forced calls are valid under every drafter, streamed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from chat_templates import HARMONY, INSTRUCT, write_marked
from checkpoints import write_moge
from serve_tools import open_tiny, served
from tool_templates import GPT_OSS, HERMES, LLAMA3, PANGU, QWEN3_CODER

from fastslow.serve.engines.local import LocalEngine
from fastslow.serve.http.app import create_app

MARKS = ("[unused9]", "[unused10]", "[unused11]", "[unused12]", "<|python_tag|>", "<|eom_id|>")
PROMPTED = "{%- if add_generation_prompt %}{{- '<|start|>assistant"
TEMPLATES = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "pangu": PANGU,
    "qwen3-coder": QWEN3_CODER,
    "plain": INSTRUCT,
    "harmony": GPT_OSS,
    "harmony-opened": GPT_OSS.replace(PROMPTED, f"{PROMPTED}<|channel|>analysis<|message|>"),
}
WHERE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Köln", "Ulm", 'a\n"b"']},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "sure": {"type": "boolean"},
    },
    "required": ["city", "days", "sure"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Rain?",
            "parameters": WHERE,
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
ASKED: Any = [{"role": "user", "content": "Rain?"}]
SCHEMAS = {"get_weather": WHERE, "clock": {"type": "object", "maxProperties": 0}}


@pytest.fixture(scope="module", params=TEMPLATES)
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("tools")
    marks = HARMONY if "harmony" in request.param else MARKS
    vocab = write_marked(folder, TEMPLATES[request.param], marks)
    write_moge(
        folder, vocab=vocab, num_hidden_layers=2, hidden_size=32, max_position_embeddings=4096
    )
    with (
        open_tiny(folder) as llm,
        served(create_app(LocalEngine(llm, "tiny"))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {
        "model": "tiny",
        "messages": ASKED,
        "tools": TOOLS,
        "max_tokens": 300,
        "seed": 5,
        **fields,
    }
    given["extra_body"] = {"thinking_budget": 3, **given.get("extra_body", {})}
    return client.chat.completions.create(**given)


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def check(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str | None, list[tuple[str, str]], str]:
    content, finish = "", None
    calls: list[list[str]] = []
    for chunk in ask(client, stream=True, **fields):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                if delta.id is not None:
                    assert delta.type == "function" and delta.index == len(calls)
                    calls.append([delta.function.name, ""])
                calls[delta.index][1] += delta.function.arguments
    assert finish is not None
    return content or None, [(name, arguments) for name, arguments in calls], finish


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_required_call_is_valid_under_every_drafter(
    client: openai.OpenAI, request: pytest.FixtureRequest, temperature: float
) -> None:
    fields: dict[str, Any] = {
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": temperature,
    }
    plain = ask(client, **fields, extra_body={"speculation": "off"}).choices[0]
    assert plain.finish_reason == "tool_calls" and plain.message.content is None
    calls = calls_of(plain.message)
    assert len(calls) == 1 and plain.message.tool_calls[0].id.startswith("call_")
    check(calls)
    most = "hermes" in request.node.name or "opened" in request.node.name
    for drafter in ("ngram", "self", "auto") if most else ("auto",):
        fields["extra_body"] = {"speculation": drafter}
        made = ask(client, **fields).choices[0]
        assert made.finish_reason == "tool_calls" and calls_of(made.message) == calls
        thoughts = [getattr(one.message, "reasoning", None) for one in (plain, made)]
        assert thoughts[0] == thoughts[1]
    assert streamed(client, **fields) == (None, calls, "tool_calls")


def test_the_thought_before_a_call_is_counted(
    client: openai.OpenAI, request: pytest.FixtureRequest
) -> None:
    made = ask(client, tool_choice="required", temperature=0, parallel_tool_calls=False)
    thought = made.usage.completion_tokens_details.reasoning_tokens
    assert thought == 3 if "opened" in request.node.name else thought <= 3


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    for name in SCHEMAS:
        named = {"type": "function", "function": {"name": name}}
        made = ask(client, tool_choice=named, parallel_tool_calls=False).choices[0]
        ((called, _),) = calls = calls_of(made.message)
        assert called == name
        check(calls)


def test_auto_and_none(client: openai.OpenAI) -> None:
    for seed in range(4):
        fields = {"seed": seed, "max_tokens": 40, "temperature": 1}
        made = ask(client, **fields).choices[0]
        assert made.finish_reason in ("stop", "length", "tool_calls")
        assert streamed(client, **fields)[:2] == (
            made.message.content or None,
            calls_of(made.message),
        )
    none = ask(client, tool_choice="none", max_tokens=8, temperature=0)
    bare: Any = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=8, temperature=0, extra_body={"thinking_budget": 3}
    )
    assert none.choices[0].message.content == bare.choices[0].message.content
    assert none.usage.prompt_tokens == bare.usage.prompt_tokens
    assert ask(client, max_tokens=2).usage.prompt_tokens > bare.usage.prompt_tokens


def test_a_cut_call_is_told_as_far_as_it_came(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}}
    }
    whole = ask(client, parallel_tool_calls=False, **fields).usage.completion_tokens
    made = ask(client, max_tokens=whole - 14, **fields).choices[0]
    assert made.finish_reason == "length"
    assert streamed(client, max_tokens=whole - 14, **fields) == (
        made.message.content or None,
        calls_of(made.message),
        "length",
    )


def test_results_go_back(client: openai.OpenAI) -> None:
    made = ask(client, tool_choice="required", parallel_tool_calls=False).choices[0].message
    call = made.tool_calls[0]
    history = [
        *ASKED,
        made.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "dry<|im_end|>"},
    ]
    again = ask(client, messages=history, max_tokens=4)
    assert again.usage.prompt_tokens > ask(client, max_tokens=4).usage.prompt_tokens


def test_the_client_s_own_stream_helper_reads_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=ASKED,
        tools=TOOLS[:1],
        tool_choice="required",
        max_tokens=300,
        seed=3,
        extra_body={"thinking_budget": 3},
        parallel_tool_calls=False,
    ) as stream:
        kinds = {event.type for event in stream}
        made = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds and made.finish_reason == "tool_calls"
    check(calls_of(made.message))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name is 'a b'",
        ),
        ({"tools": TOOLS[:1] * 2}, "two functions are named get_weather"),
        ({"tools": TOOLS[:1] * 129}, "tools has 129 functions; at most 128"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "not among the tools"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"extra_body": {"guided_regex": "a"}}, "only be held to a JSON schema"),
    ],
)
def test_bad_tools_are_the_client_s_error(
    client: openai.OpenAI, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert said in str(caught.value)
