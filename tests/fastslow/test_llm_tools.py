"""Tools in Python: calls come in the output and in the stream, as the server's own parsers find them."""

import asyncio
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chat_templates import write_marked
from checkpoints import write_moge
from refusals import refused
from tool_templates import HERMES

from fastslow import LLM, AsyncLLM, SamplingParams, ToolCall

CITY = {"enum": ["Ulm", "Rom"]}
PLACE = {"type": "object", "properties": {"city": CITY, "sure": {"type": "boolean"}}}
SCHEMAS = {
    "weather": {**PLACE, "required": ["city", "sure"], "additionalProperties": False},
    "clock": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
NAMED = {"type": "function", "function": {"name": "clock"}}
ASKED = "Does it rain?"
ONE: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "mode": "fast"}
PARAMS = SamplingParams(max_tokens=99, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32}
    write_moge(folder, vocab=write_marked(folder, HERMES, ()), max_position_embeddings=4096, **size)
    return folder


def check(calls: list[ToolCall]) -> None:
    assert calls and len({call.id for call in calls}) == len(calls)
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_calls_are_in_the_output(llm: LLM) -> None:
    out = llm.chat(ASKED, PARAMS, **ONE)
    check(out.tool_calls)
    assert (out.text, out.finish_reason, len(out.tool_calls)) == ("", "stop", 1)
    (plain,) = json.loads(json.dumps(out.to_dict()))["choices"]
    assert [ToolCall(**call) for call in plain["tool_calls"]] == out.tool_calls
    two = llm.chat(ASKED, {"max_tokens": 99, "temperature": 1, "n": 2}, **ONE | {"tool_choice": NAMED})
    assert [[call.name for call in one.tool_calls] for one in two.choices] == [["clock"]] * 2


def test_a_stream_has_the_calls_of_the_output(llm: LLM) -> None:
    out = llm.chat(ASKED, PARAMS, **ONE)
    begun: dict[str, list[ToolCall]] = defaultdict(list)
    text = ""
    for piece in llm.stream_chat(ASKED, PARAMS, **ONE):
        text += piece.text
        for call in piece.tool_calls:
            begun[call.id].append(call)
        last = piece.output
    joined = [ToolCall(c[0].name, "".join(x.arguments for x in c), id) for id, c in begun.items()]
    assert last is not None and (last.tool_calls, last.text) == (joined, text)
    assert max(map(len, begun.values())) > 2, "arguments come as they are made"
    assert [(c.name, c.arguments) for c in joined] == [(c.name, c.arguments) for c in out.tool_calls]
    assert last.token_ids == out.token_ids


def test_lists_and_asyncio_and_submit_take_tools(llm: LLM) -> None:
    single = llm.chat(ASKED, PARAMS, **ONE).token_ids
    both = llm.chat([ASKED, ASKED], PARAMS, **ONE)
    assert [out.token_ids for out in both] == [single] * 2
    first, second = llm.chat([ASKED, ASKED], PARAMS, **ONE | {"tools": [TOOLS[1:], TOOLS]})
    assert first.tool_calls[0].name == "clock" and second.token_ids == single
    messages = [{"role": "user", "content": ASKED}]
    assert llm.submit(messages, PARAMS, **ONE).result().token_ids == single

    async def asked() -> Any:
        return await AsyncLLM.around(llm).chat(ASKED, PARAMS, **ONE)

    out = asyncio.run(asked())
    check(out.tool_calls)
    assert out.token_ids == single
    assert len(llm.tokenize(messages, tools=TOOLS)) > 20 + len(llm.tokenize(messages))


def test_results_go_back(llm: LLM) -> None:
    out = llm.chat(ASKED, PARAMS, **ONE)
    (call,) = out.tool_calls
    talk: list[dict[str, Any]] = [{"role": "user", "content": ASKED}]
    talk.append({"role": "assistant", "content": out.text, "tool_calls": [call.to_dict()]})
    talk.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    again = llm.chat(talk, {"max_tokens": 4}, tools=TOOLS, tool_choice="none")
    assert not again.tool_calls and call.name in str(again.prompt) and "rain" in str(again.prompt)


def test_an_answer_without_calls_may_be_held_to_a_schema(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    for wanted in (schema, json.dumps(schema)):
        params = SamplingParams(max_tokens=60, temperature=0, grammar={"json_schema": wanted})
        out = llm.chat(ASKED, params, tools=TOOLS)
        assert out.tool_calls or list(json.loads(out.text)) == ["a"]


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("text", {"tools": TOOLS}, "tools are for messages, and this prompt is none"),
    ([1, 2], {"tools": TOOLS}, "tools are for messages, and this prompt is none"),
    (None, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0..function.name is 'a b'"),
    (None, {"tools": [{"type": "web"}]}, "tools.0..type is 'web'; only 'function' is taken"),
    (None, {"tools": TOOLS, "tool_choice": "any"}, "tool_choice is 'any'; it must be 'none', 'auto'"),
    (None, {"tools": "f"}, "tools='f' must be a list of dicts, or None"),
    (None, {"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls=1 must be a valid boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "options", "said"), BAD)
def test_what_does_not_fit_is_said_at_once(llm: LLM, prompt: Any, options: dict[str, Any], said: str) -> None:
    messages = [{"role": "user", "content": ASKED}] if prompt is None else prompt
    refused(f"^{said}", llm.submit, messages, **options)


def test_a_choice_of_nothing_is_refused(llm: LLM) -> None:
    refused("wants a call, but there are no tools", llm.chat, ASKED, tool_choice="required")
    other = {"type": "function", "function": {"name": "clocks"}}
    refused("'clocks', which is not among the tools; did you mean", llm.chat, ASKED, tools=TOOLS, tool_choice=other)
