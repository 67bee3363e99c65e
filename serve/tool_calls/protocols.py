"""Tools and the choice of them, as the protocols write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastslow.engine.params import shown
from fastslow.serve.tool_calls.offered import Tool, ToolChoice, check_count, tool_of

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


def openai_tools(given: Sequence[Any] | None) -> list[Tool]:
    """`tools` of /v1/chat/completions, whose fields are in `function`, or of /v1/responses, where they are not.

    Raises:
        ValueError: one sentence about a field.
    """
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
    """`tool_choice` of the same.

    Raises:
        ValueError: it is none.
    """
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
    """`tools` of /v1/messages.

    Raises:
        ValueError: one sentence about a field.
    """
    check_count(given or ())
    tools = []
    for place, tool in enumerate(given or ()):
        kind = tool.get("type") if isinstance(tool, Mapping) else ""
        if kind not in (None, "custom"):
            raise ValueError(f"tools[{place}].type is {shown(kind)}; only 'custom' is taken")
        tools.append(tool_of(f"tools[{place}]", tool, "input_schema"))
    return tools


def anthropic_choice(given: Any) -> tuple[ToolChoice, bool]:
    """`tool_choice` of the same, and whether several calls are allowed.

    Raises:
        ValueError: it is none.
    """
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
