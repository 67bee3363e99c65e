"""The functions that a client offers and which an answer may or must call, as each protocol writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastslow.engine.params import nearest, shown
from fastslow.engine.sampling.json_schema import MOST_PROPERTIES

MOST_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
LONGEST_SCHEMA, LONGEST_SCHEMAS = 65_536, 196_608  # characters of JSON: of one, and of all together
LONGEST_DESCRIPTION = 65_536
MODES: dict[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
}
ANTHROPIC_MODES: dict[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "tool": "required",
}


@dataclass(frozen=True, slots=True)
class Tool:
    """One function.

    Attributes:
        parameters: a JSON schema of an object.
        strict: what the grammar cannot hold the arguments to is an error; else it is left out.
    """

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
    """Whether an answer calls functions.

    Attributes:
        names: those that it may call; None: all that are offered.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None


def tool_of(place: str, given: Mapping[str, Any], schema: str = "parameters") -> Tool:
    """One function, from its fields.

    Args:
        place: of the function in the request, for messages.
        schema: the field that holds the parameters.
    """
    name, description = given.get("name"), given.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(
            f"{place}.name is {shown(name)}; it must be 1 to 64 letters of a-z, A-Z, 0-9, _ and -"
        )
    if not isinstance(description, str | None):
        raise ValueError(f"{place}.description is {shown(description)}; it must be a text")
    if description and len(description) > LONGEST_DESCRIPTION:
        raise ValueError(
            f"{place}.description has {len(description)} characters; at most {LONGEST_DESCRIPTION} are taken"
        )
    strict = given.get("strict")
    if not isinstance(strict, bool | None):
        raise ValueError(f"{place}.strict is {shown(strict)}; it must be true or false")
    parameters = given.get(schema)
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ValueError(f"{place}.{schema} must be a JSON schema of type object")
    size = len(_text(f"{place}.{schema}", parameters))
    if size > LONGEST_SCHEMA:
        raise ValueError(
            f"{place}.{schema} has {size} characters; at most {LONGEST_SCHEMA} are taken"
        )
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


def check(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """Those that may be called."""
    names = [tool.name for tool in tools]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"tools: two functions are named {name}")
        seen.add(name)
    size = sum(len(_text("tools", tool.parameters)) for tool in tools)
    if size > LONGEST_SCHEMAS:
        raise ValueError(
            f"tools: the schemas have {size} characters together; at most {LONGEST_SCHEMAS} are taken"
        )
    if choice.names is None:
        return list(tools)
    for name in choice.names:
        if name not in seen:
            raise ValueError(
                f"tool_choice names the function {shown(name)}, which is not among the tools"
                f"{nearest(name, names)}"
            )
    return [tool for tool in tools if tool.name in choice.names]


def check_count(tools: Collection[Any]) -> None:
    """Before they are looked at. Raises ValueError for too many."""
    if len(tools) > MOST_TOOLS:
        raise ValueError(f"tools has {len(tools)} functions; at most {MOST_TOOLS} are taken")


def _text(place: str, schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{place} is no JSON, or nests too deep") from None


def openai_tools(given: Sequence[Any] | None) -> list[Tool]:
    """`tools` of /v1/chat/completions, whose fields are in `function`, or of /v1/responses, where they are not."""
    check_count(given or ())
    tools = []
    for place, tool in enumerate(given or ()):
        where = f"tools[{place}]"
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if kind != "function":
            raise ValueError(f"{where}.type is {shown(kind)}; only 'function' is taken")
        if "function" in tool:
            where, tool = f"{where}.function", tool["function"]
        if not isinstance(tool, Mapping):
            raise ValueError(f"{where} is {shown(tool)}; it must be an object with a name")
        tools.append(tool_of(where, tool))
    return tools


def openai_choice(given: Any) -> ToolChoice:
    """`tool_choice` of the same."""
    if given is None:
        return ToolChoice()
    if isinstance(given, str) and given in MODES:
        return ToolChoice(MODES[given])
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "function":
        return ToolChoice("required", (_name("tool_choice", given),))
    if kind == "allowed_tools":
        inner = given.get("allowed_tools", given)
        mode = inner.get("mode") if isinstance(inner, Mapping) else None
        tools = inner.get("tools") if isinstance(inner, Mapping) else None
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            raise ValueError(
                "tool_choice.allowed_tools must have a mode, 'auto' or 'required', and a list of tools"
            )
        check_count(tools)
        names = (
            _name(f"tool_choice.allowed_tools.tools[{place}]", tool)
            for place, tool in enumerate(tools)
        )
        return ToolChoice(MODES[mode], tuple(names))
    raise ValueError(
        f"tool_choice is {shown(given)}; it must be 'none', 'auto', 'required' or name a function"
    )


def anthropic_tools(given: Sequence[Any] | None) -> list[Tool]:
    """`tools` of /v1/messages."""
    check_count(given or ())
    tools = []
    for place, tool in enumerate(given or ()):
        kind = tool.get("type") if isinstance(tool, Mapping) else ""
        if kind not in (None, "custom"):
            raise ValueError(f"tools[{place}].type is {shown(kind)}; only 'custom' is taken")
        tools.append(tool_of(f"tools[{place}]", tool, "input_schema"))
    return tools


def anthropic_choice(given: Any) -> tuple[ToolChoice, bool]:
    """`tool_choice` of the same, and whether several calls are allowed."""
    if given is None:
        return ToolChoice(), True
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in ANTHROPIC_MODES:
        raise ValueError(
            f"tool_choice is {shown(given)}; its type must be 'auto', 'any', 'tool' or 'none'"
        )
    alone = given.get("disable_parallel_tool_use", False)
    if not isinstance(alone, bool):
        raise ValueError("tool_choice.disable_parallel_tool_use must be true or false")
    names = (_name("tool_choice", given),) if kind == "tool" else None
    return ToolChoice(ANTHROPIC_MODES[kind], names), not alone


def _name(place: str, given: Any) -> str:
    """The function that is named, in `function` or at once."""
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"{place} must name a function")
    return name
