"""The functions that a client offers and which an answer may or must call, as each protocol writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastslow.engine.params import nearest, shown
from fastslow.engine.sampling.grammars.json_schema import MOST_PROPERTIES

MOST_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
LONGEST_SCHEMAS = 196_608  # characters of JSON, of all schemas together
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
Mode = Literal["none", "auto", "required"]
MODES: dict[str, Mode] = {"none": "none", "auto": "auto", "required": "required"}
ANTHROPIC_MODES: dict[str, Mode] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "tool": "required",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: a JSON schema of an object. strict: what the grammar cannot hold
    the arguments to is an error; else it is left out."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    def as_variable(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", "properties": {}, **self.parameters},
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Choice of whether an answer calls functions. names: those that it may call; None: all that are offered. once: it
    is over after one call."""

    mode: Mode = "auto"
    names: tuple[str, ...] | None = None
    once: bool = False


def openai_tools(given: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """`tools` of /v1/chat/completions, whose fields are in `function`, or of /v1/responses, where they are not."""
    tools = []
    for where, tool, kind in _each(given):
        if kind != "function":
            raise ValueError(f"{where}.type is {shown(kind)}; only 'function' is taken")
        if "function" in tool:
            where, tool = f"{where}.function", tool["function"]
        tools.append(_tool(where, tool, "parameters"))
    return tools


def anthropic_tools(given: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """`tools` of /v1/messages."""
    tools = []
    for where, tool, kind in _each(given):
        if kind not in (None, "custom"):
            raise ValueError(f"{where}.type is {shown(kind)}; only 'custom' is taken")
        tools.append(_tool(where, tool, "input_schema"))
    return tools


def openai_choice(given: Any) -> ToolChoice:
    """`tool_choice` of both of OpenAI's protocols."""
    if given is None:
        return ToolChoice()
    if isinstance(given, str) and given in MODES:
        return ToolChoice(MODES[given])
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "function":
        return ToolChoice("required", (_name(given),), once=True)
    if kind == "allowed_tools":
        inner = given.get("allowed_tools", given)
        fields = inner if isinstance(inner, Mapping) else {}
        mode, tools = fields.get("mode"), fields.get("tools")
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            raise ValueError(
                "tool_choice.allowed_tools must have a mode, 'auto' or 'required', and a list of tools"
            )
        return ToolChoice(MODES[mode], tuple(map(_name, tools)))
    raise ValueError(
        f"tool_choice is {shown(given)}; it must be 'none', 'auto', 'required' or name a function"
    )


def anthropic_choice(given: Mapping[str, Any] | None) -> tuple[ToolChoice, bool]:
    """`tool_choice` of /v1/messages, and whether several calls are allowed."""
    if given is None:
        return ToolChoice(), True
    kind, alone = given.get("type"), given.get("disable_parallel_tool_use", False)
    if not isinstance(kind, str) or kind not in ANTHROPIC_MODES:
        raise ValueError(
            f"tool_choice is {shown(given)}; its type must be 'auto', 'any', 'tool' or 'none'"
        )
    if not isinstance(alone, bool):
        raise ValueError("tool_choice.disable_parallel_tool_use must be true or false")
    names = (_name(given),) if kind == "tool" else None
    return ToolChoice(ANTHROPIC_MODES[kind], names, once=kind == "tool"), not alone


def callable_tools(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """Tools that may be called."""
    if not tools and (choice.mode == "required" or choice.names):
        raise ValueError("tool_choice wants a call, but there are no tools")
    names = [tool.name for tool in tools]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ValueError(f"tools: two functions are named {shown(twice)}")
    size = sum(len(json.dumps(tool.parameters)) for tool in tools)
    if size > LONGEST_SCHEMAS:
        raise ValueError(
            f"tools: the schemas have {size} characters together; at most {LONGEST_SCHEMAS} are taken"
        )
    for name in choice.names or ():
        if name not in names:
            raise ValueError(
                f"tool_choice names the function {shown(name)}, which is not among the tools"
                f"{nearest(name, names)}"
            )
    return [tool for tool in tools if choice.names is None or tool.name in choice.names]


def _each(given: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, Any, Any]]:
    """Each tool with its place, for messages, and its type."""
    if given and len(given) > MOST_TOOLS:
        raise ValueError(f"tools has {len(given)} functions; at most {MOST_TOOLS} are taken")
    return [(f"tools[{i}]", tool, tool.get("type")) for i, tool in enumerate(given or ())]


def _tool(place: str, given: Any, schema: str) -> Tool:
    """Make a `Tool` from its fields; `schema`: the field that holds the parameters. ValueError: one does not fit."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {shown(given)}; it must be an object with a name")
    name, description = given.get("name"), given.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{place}.name is {shown(name)}; it must be 1 to 64 letters of a-z, A-Z, 0-9, _ and -"
        )
    if not isinstance(description, str | None):
        raise ValueError(f"{place}.description is {shown(description)}; it must be a text")
    strict, parameters = given.get("strict"), given.get(schema)
    if not isinstance(strict, bool | None):
        raise ValueError(f"{place}.strict is {shown(strict)}; it must be true or false")
    if parameters is None:
        parameters = NO_PARAMETERS
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ValueError(f"{place}.{schema} must be a JSON schema of type object")
    if (count := _largest(parameters)) > MOST_PROPERTIES:
        raise ValueError(
            f"{place}.{schema} has an object of {count} properties; at most {MOST_PROPERTIES} are taken"
        )
    return Tool(name, description or "", parameters, bool(strict))


def _largest(schema: Any) -> int:
    """The number of entries of the largest object in a schema."""
    todo, most = [schema], 0
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            most = max(most, len(one))
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return most


def _name(given: Any) -> str:
    """The function that a choice names, in `function` or at once."""
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise ValueError("tool_choice must name a function")
    return name
