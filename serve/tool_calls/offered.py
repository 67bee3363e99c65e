"""The functions that a client offers, and which of them an answer may or must call."""

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

    Raises:
        ValueError: one sentence about a field.
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
    """Those that may be called.

    Raises:
        ValueError: two have one name, all are too long, or a name that is chosen is not among them.
    """
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
