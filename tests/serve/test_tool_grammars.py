"""Grammars of tools: whatever they let a model say is read as valid calls, what is refused, and what takes long."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from chat_templates import HARMONY, write_marked
from fake_engine import output
from llguidance import LLMatcher, LLTokenizer
from refusals import refused

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.tool_formats import BY_NAME, ToolCalls
from fastslow.output import Piece
from fastslow.tool_calls import prepare
from fastslow.tool_calls.answer_parts import AnswerParts
from fastslow.tool_calls.offered import Tool, ToolChoice, anthropic_choice, openai_choice
from fastslow.tool_calls.prepare import ToolSupport

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Köln", 'a "b" <c>', "</tool_call>"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}, "sure": {"type": "boolean"},
    },
    "required": ["city", "sure"], "additionalProperties": False, "$defs": {"part": {"enum": [1, None, "x"]}},
}  # fmt: skip
TOOLS = [
    Tool("get_weather", "", PLACE, True),
    Tool("get", parameters={"properties": {}, "additionalProperties": False}),
]
FORMATS = [name for name, form in BY_NAME.items() if form.kind != "messages"]
MARKS = (*HARMONY, "[unused11]", "[unused12]", "[TOOL_CALLS]", "[ARGS]", '<|"|>', "<|python_tag|>", "<|eom_id|>")


class Speaker:
    """Says what a grammar allows, at random, in the tokens of a small tokenizer."""

    def __init__(self, folder: Path) -> None:
        write_marked(folder, "x", MARKS)
        self.tokenizer = load_tokenizer(folder)
        self._ll = LLTokenizer((folder / "tokenizer.json").read_text("utf-8"), eos_token=2)

    def calls(self, name: str) -> ToolCalls:
        return ToolCalls(BY_NAME[name], BY_NAME[name].tokens(self.tokenizer))

    def grammar(self, name: str, choice: Any = "auto", parallel: bool = True, **given: Any) -> str:
        """Of answers in a format, by a model that has the tools."""
        return lark(ToolSupport(TOOLS, ToolChoice(choice), parallel, self.calls(name), given or None))

    def text(self, lark: str, begun: str, seed: int) -> str:
        chance = random.Random(seed)
        matcher = LLMatcher(self._ll, LLMatcher.grammar_from_lark(lark), log_level=0)
        said = self.tokenizer.encode(begun, add_special=False) if begun else []
        assert matcher.consume_tokens(said) or not said, matcher.get_error()
        while len(said) < 1500:
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(self.tokenizer.vocab_size) if mask[i // 8] >> i % 8 & 1]
            assert allowed, matcher.get_error()
            token = 2 if 2 in allowed and chance.random() < 0.5 else chance.choice(allowed)
            if token == 2:
                return self.tokenizer.decode(said, skip_special=False)
            said.append(token)
            assert matcher.consume_token(token)
        raise AssertionError("it never ends")

    def fits(self, lark: str, text: str) -> bool:
        matcher = LLMatcher(self._ll, LLMatcher.grammar_from_lark(lark), log_level=0)
        ids = self.tokenizer.encode(text, add_special=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return Speaker(tmp_path_factory.mktemp("speaker"))


def lark(prepared: ToolSupport) -> str:
    return str(prepared.sampling["grammar"]["lark"])


def check_calls(prepared: ToolSupport, text: str) -> tuple[str, list[str]]:
    """The content of a text, and the functions that it calls, whose arguments are valid."""
    parts = AnswerParts(prepared.parser(), True)
    parts.push(Piece(text))
    parts.finish(output("").choices[0])
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    for call in parts.calls:
        jsonschema.validate(json.loads(call.text), schemas[call.name])
    return parts.text_of("text"), [call.name for call in parts.calls]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call_is_valid(speaker: Speaker, name: str, parallel: bool) -> None:
    prepared = ToolSupport(TOOLS, ToolChoice("required"), parallel, speaker.calls(name))
    counts: set[int] = set()
    names: set[str] = set()
    for seed in range(8):
        content, called = check_calls(prepared, speaker.text(lark(prepared), "", seed))
        assert content == ""
        counts.add(len(called))
        names.update(called)
    assert (counts == {1}) is not parallel and names == {"get_weather", "get"}


BEGINNINGS = {
    "generic": "So.\n<tool_call>", "hermes": "So.\n<tool_call>", "qwen3-coder": "So.\n<tool_call>",
    "glm": "So.\n<tool_call>", "minimax": "So.\n<minimax:tool_call>", "pangu": "So.[unused11]", "openpangu": "So.<|tool_call_start|>", "mistral": "So.[TOOL_CALLS]", "ministral": "So.[TOOL_CALLS]",
    "hunyuan": "So.<tool_calls>", "granite": "So.<|tool_call|>",
    "gemma4": "So.<|tool_call>",
    "llama3": '{"name": "',
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_an_answer_is_free_until_a_call_begins(speaker: Speaker, name: str, parallel: bool) -> None:
    prepared = ToolSupport(TOOLS, ToolChoice(), parallel, speaker.calls(name))
    grammar, begun = lark(prepared), BEGINNINGS[name]
    assert speaker.fits(grammar, 'It is {"name": 5} or <tool, wörd\n') and speaker.fits(grammar, '{"names": 1}')
    assert speaker.fits(grammar, "")
    if not parallel or name == "llama3":  # else texts of any length may follow
        content, called = check_calls(prepared, speaker.text(grammar, begun, 3))
        assert called and content == ("" if name == "llama3" else "So.")
    assert not speaker.fits(grammar, begun + "what") and not speaker.fits(grammar, begun)


def test_a_call_may_stand_between_texts(speaker: Speaker) -> None:
    call = '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>'
    many, one = (speaker.grammar("hermes", parallel=parallel) for parallel in (True, False))
    assert speaker.fits(many, f"A{call} B\n{call}\nC") and speaker.fits(one, f"A{call}")
    assert not speaker.fits(one, f"A{call}{call}")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "llama3"])
def test_an_answer_without_calls_keeps_to_its_schema(speaker: Speaker, name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    held: dict[str, Any] = {"json_schema": schema}
    any_object: dict[str, Any] = {"json_object": True}
    for given in (held, any_object):
        grammar = speaker.grammar(name, **given)
        assert speaker.fits(grammar, '{"a": 5}') and not speaker.fits(grammar, "So.")
        assert speaker.fits(grammar, '{"a": 5, "b": 5}') is (given == any_object)
        assert speaker.fits(grammar, "{}") is (given == any_object)
    refused("JSON without a mark, so its other answers cannot be hel", speaker.grammar, "llama3", **any_object)
    refused("only be held to a JSON schema", speaker.grammar, name, regex="a")


def test_strict_functions_are_held_to_their_schema_or_the_log_says_so(speaker: Speaker, logged: list[str]) -> None:
    odd = {
        "type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64"}},
        "unevaluatedProperties": False, "not": {},
    }  # fmt: skip
    calls = speaker.calls("hermes")
    with pytest.raises(ValueError, match=r"^tools\[1\]\.parameters cannot be held to: "):
        ToolSupport([TOOLS[0], Tool("f", parameters=odd, strict=True)], ToolChoice(), True, calls)
    loose = ToolSupport([Tool("f", parameters=odd)], ToolChoice("required"), True, calls)
    text = '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>'
    assert speaker.fits(lark(loose), text)
    assert not speaker.fits(lark(loose), text.replace('"x"', "1")), "what is known holds"
    broken = {"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}
    calls = speaker.calls("hermes")
    loose = ToolSupport([Tool("f", parameters=broken)], ToolChoice("required"), True, calls)
    assert any("arguments of tools[0] are any object: " in line for line in logged)
    assert speaker.fits(lark(loose), '<tool_call>\n{"name": "f", "arguments": {"b": [1]}}\n</tool_call>')


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_choice_is_one_call_and_the_end(speaker: Speaker, name: str) -> None:
    named = openai_choice({"type": "function", "function": {"name": "get"}})
    also, _ = anthropic_choice({"type": "tool", "name": "get"})
    for choice in (named, also):
        prepared = ToolSupport(TOOLS, choice, True, speaker.calls(name))
        said = {speaker.text(lark(prepared), "", seed) for seed in range(6)}
        assert all(check_calls(prepared, text) == ("", ["get"]) for text in said)


CITY = {"type": "object", "properties": {"name": {"type": "string", "enum": ["Ulm"]}}}
LOOSE = {"properties": {"city": {"$ref": "#/$defs/c"}}, "required": ["city"], "$defs": {"c": CITY}}


@pytest.mark.parametrize("name", ["hermes", "qwen3-coder"])
@pytest.mark.parametrize("strict", [True, False])
def test_arguments_have_the_fields_that_are_named(speaker: Speaker, name: str, strict: bool) -> None:
    def fits(schema: dict[str, Any], city: str) -> bool:
        tool = Tool("f", parameters=schema, strict=strict)
        held = ToolSupport([tool], ToolChoice("required"), False, speaker.calls(name))
        text = f'<tool_call>\n{{"name": "f", "arguments": {{"city": {city}}}}}\n</tool_call>'
        if name == "qwen3-coder":
            value = f"<function=f>\n<parameter=city>\n{city}\n</parameter>\n</function>"
            text = f"<tool_call>\n{value}\n</tool_call>"
        return speaker.fits(lark(held), text)

    more = '{"name": "Ulm", "more": 1}'
    assert fits(LOOSE, '{"name": "Ulm"}') and not fits(LOOSE, more)
    assert fits({**LOOSE, "x-additional-properties": True}, more)
    assert fits({**LOOSE, "$defs": {"c": {**CITY, "additionalProperties": True}}}, more)


def test_no_tools_no_change_and_end_tokens_of_the_format_end_the_answer(speaker: Speaker) -> None:
    calls = speaker.calls("hermes")
    for tools, choice in (([], ToolChoice()), (TOOLS, ToolChoice("none"))):
        prepared = ToolSupport(tools, choice, True, calls)
        assert (prepared.variables, prepared.sampling, prepared.parser()) == ({}, {}, None)
    refused("wants a call, but there are no tools", ToolSupport, [], ToolChoice("required"), True, calls)
    for name, stops in (("llama3", [speaker.tokenizer.token_id("<|eom_id|>")]), ("pangu", None)):
        assert ToolSupport(TOOLS, ToolChoice(), True, speaker.calls(name)).sampling.get("stop_token_ids") == stops


CALLED = "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}"
NEXT = "<|start|>assistant"


def test_calls_in_channels_come_after_the_analysis(speaker: Speaker) -> None:
    calls = speaker.calls("harmony")
    must, may = (speaker.grammar("harmony", choice) for choice in ("required", "auto"))
    final = f"{NEXT}<|channel|>final<|message|>"
    word = f"{NEXT}<|channel|>commentary<|message|>I look.<|end|>"
    for grammar in (must, may):
        assert speaker.fits(grammar, NEXT + CALLED) and not speaker.fits(grammar, word)
        assert not speaker.fits(grammar, NEXT + CALLED.replace("get", "put"))
        assert not speaker.fits(grammar, f"{NEXT}{CALLED}so")
    for said in (word + NEXT + CALLED, f"{word}{final}so", f"{final}so"):
        assert speaker.fits(may, said) and not speaker.fits(must, said)
    held = speaker.grammar("harmony", json_schema={"type": "integer"})
    assert speaker.fits(held, f"{final}5") and not speaker.fits(held, f"{final}so")
    stops = ToolSupport(TOOLS, ToolChoice(), True, calls).sampling["stop_token_ids"]
    assert stops == [speaker.tokenizer.token_id("<|call|>")]


ASKED = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
COSTLY = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 999_983}}}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": COSTLY, **fields}}


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_schemas_are_looked_at_beside_the_loop(http: httpx.Client, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []

    def look(schema: str) -> tuple[dict[str, Any], str]:
        try:
            looked.append(bool(asyncio.get_running_loop()))
        except RuntimeError:
            looked.append(False)
        return {}, ""

    monkeypatch.setattr(prepare, "_held", look)
    parameters = {"type": "object", "properties": {"b": {"type": "string"}}}
    body: dict[str, Any] = {**ASKED, "tools": [tool(parameters=parameters)]}
    if path == "responses":
        body = {"input": "a", "max_output_tokens": 1, "tools": body["tools"]}
    elif path == "messages":
        body["tools"] = [{"name": "f", "input_schema": parameters}]
    assert http.post(f"/v1/{path}", json=body).status_code == 200 and looked == [False]


def test_a_costly_schema_is_refused_or_left_out(http: httpx.Client, logged: list[str]) -> None:
    strict = http.post("/v1/chat/completions", json={**ASKED, "tools": [tool(strict=True)]})
    assert strict.status_code == 400
    assert strict.json()["error"]["message"].startswith("tools[0].parameters cannot be held to: multipleOf: ")
    assert http.post("/v1/chat/completions", json={**ASKED, "tools": [tool()]}).status_code == 200
    assert any("arguments of tools[0] are any object: " in line for line in logged)
