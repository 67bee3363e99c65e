"""Tools and the choice of them as clients send them: what is read, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from refusals import refused
from tool_templates import CLOCK, WEATHER

from fastslow.tool_calls import offered
from fastslow.tool_calls.offered import Tool, ToolChoice, openai_choice, openai_tools

MANY = {"type": "object", "properties": {f"p{i}": {} for i in range(2001)}}


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def test_all_protocols_say_the_same() -> None:
    chat = openai_tools([WEATHER, CLOCK])
    flat = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]
    renamed = []
    for tool in (WEATHER, CLOCK):
        fields = dict(tool["function"])
        fields["input_schema"] = fields.pop("parameters")
        renamed.append(fields)
    assert openai_tools(flat) == offered.anthropic_tools(renamed) == chat
    assert [tool.as_variable() for tool in chat] == [WEATHER, CLOCK]
    assert openai_tools(None) == offered.anthropic_tools([]) == []
    (bare,) = openai_tools([function()])
    assert bare == Tool("f", "", {"type": "object", "properties": {}, "additionalProperties": False})


BAD_TOOLS: list[tuple[list[Any], str]] = [
    ([{"type": "custom"}], "tools[0].type is 'custom'; only 'function' is taken"),
    ([{"type": "function", "function": 5}], "tools[0].function is 5; it must be an object"),
    ([function(name="")], "tools[0].function.name is ''; it must be 1 to 64 letters"),
    ([function(name="a b")], "tools[0].function.name is 'a b'; it must be 1 to 64 letters"),
    ([function(name="é")], "it must be 1 to 64 letters"),
    ([function(name="f\n")], "it must be 1 to 64 letters"),
    ([function(name="a" * 65)], "it must be 1 to 64 letters"),
    ([function(), function(name=5)], "tools[1].function.name is 5"),
    ([function(description=5)], "tools[0].function.description is 5; it must be a text"),
    ([function(strict="yes")], "tools[0].function.strict is 'yes'; it must be true or false"),
    ([function(parameters=[])], "tools[0].function.parameters must be a JSON schema of type"),
    ([function(parameters={"type": "array"})], "parameters must be a JSON schema of type object"),
    ([function(parameters=MANY)], "has an object of 2001 properties; at most 2000 are taken"),
    ([function()] * 129, "tools has 129 functions; at most 128 are taken"),
]


@pytest.mark.parametrize(("given", "said"), BAD_TOOLS)
def test_bad_tools_are_refused(given: list[Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        openai_tools(given)
    assert said in str(caught.value) and len(str(caught.value)) < 300


def test_choices() -> None:
    assert openai_choice(None) == openai_choice("auto") == ToolChoice("auto")
    assert openai_choice("none") == ToolChoice("none") and openai_choice("required") == ToolChoice("required")
    named = ToolChoice("required", ("f",), once=True)
    assert openai_choice({"type": "function", "function": {"name": "f"}}) == named
    assert openai_choice({"type": "function", "name": "f"}) == named
    some = {"mode": "auto", "tools": [function(), {"type": "function", "name": "g"}]}
    assert openai_choice({"type": "allowed_tools", "allowed_tools": some}) == ToolChoice("auto", ("f", "g"))
    assert openai_choice({"type": "allowed_tools", **some}) == ToolChoice("auto", ("f", "g"))
    some = {"mode": "required", "tools": [function()]}  # a list of one: as many calls as it likes
    assert openai_choice({"type": "allowed_tools", **some}) == ToolChoice("required", ("f",))
    assert offered.anthropic_choice(None) == (ToolChoice(), True)
    assert offered.anthropic_choice({"type": "any"}) == (ToolChoice("required"), True)
    alone = {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    assert offered.anthropic_choice(alone) == (named, False)


BAD_CHOICES: list[tuple[Callable[[Any], object], list[Any]]] = [
    (openai_choice, ["any", 5, {}, {"type": "function"}, {"type": "allowed_tools"}]),
    (offered.anthropic_choice, [{"type": "tool"}, {"type": []}]),
    (offered.anthropic_choice, [{"type": "auto", "disable_parallel_tool_use": 1}]),
]


@pytest.mark.parametrize(("read", "given"), BAD_CHOICES)
def test_bad_choices_are_refused(read: Callable[[Any], object], given: list[Any]) -> None:
    for choice in given:
        refused("^tool_choice", read, choice)


def test_names_are_known_and_differ() -> None:
    tools = [Tool("get"), Tool("put")]
    assert offered.callable_tools(tools, ToolChoice(names=("put",))) == tools[1:]
    refused("two functions are named 'get'", offered.callable_tools, [*tools, Tool("get")], ToolChoice())
    refused("'pet', which is not among the tools", offered.callable_tools, tools, ToolChoice("required", ("pet",)))
    long = {"type": "object", "description": "x" * 60_000}
    with pytest.raises(ValueError, match="characters together; at most 196608 are taken"):
        offered.callable_tools([Tool(f"f{i}", parameters=long) for i in range(4)], ToolChoice())
