"""Tools for templates that know none: a block in the system's turn describes them, and calls and results
become the text of turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastslow.engine.text.tool_formats import LIST, RESULT, ToolFormat

BEFORE = "You may call functions to help with the request. Each line describes one:"
HOW = (
    "To call functions, write their names and arguments as JSON in this form, and nothing after it:"
)
NAME, ARGUMENTS = "<the function's name>", "<its arguments>"


def tool_block(tools: Sequence[Any], form: ToolFormat) -> str:
    """What a model is told of tools."""
    lines = [json.dumps(_function(tool), ensure_ascii=False) for tool in tools]
    example = form.written([{"name": NAME, "arguments": {"": ARGUMENTS}}])
    example = example.replace(json.dumps({"": ARGUMENTS}), f"{{{ARGUMENTS}}}")
    return "\n".join([BEFORE, LIST[0], *lines, LIST[1], HOW, example])


def plain_turns(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    form: ToolFormat,
    in_system: bool,
    tool_turns: bool,
) -> list[Mapping[str, Any]]:
    """Messages without fields of tools, which are part of the contents.

    Args:
        in_system: the template writes a system's turn; else the block goes in front of the user's first.
        tool_turns: it writes turns of the role "tool" too; else results become the user's.
    """
    turns = list(_turns(messages, form, tool_turns))
    if not tools:
        return turns
    block = tool_block(tools, form)
    role = "system" if in_system else "user"
    place = next((i for i, turn in enumerate(turns) if turn["role"] == role), None)
    if place is None or (in_system and place > 0):
        return [{"role": role, "content": block}, *turns]
    content = str(turns[place]["content"])
    parts = [content, block] if in_system else [block, content]
    turns[place] = {**turns[place], "content": "\n\n".join(filter(None, parts))}
    return turns


def _turns(
    messages: Sequence[Mapping[str, Any]], form: ToolFormat, tool_turns: bool
) -> Iterator[Mapping[str, Any]]:
    results: list[str] = []  # one after the other become one turn
    for message in messages:
        if message["role"] == "tool" and not tool_turns:
            results.append(f"{RESULT[0]}\n{message['content']}\n{RESULT[1]}")
            continue
        if results and message["role"] == "user":
            message = {**message, "content": "\n".join([*results, message["content"]])}
        elif results:
            yield {"role": "user", "content": "\n".join(results)}
        results = []
        if "tool_calls" in message:
            calls = form.written([call["function"] for call in message["tool_calls"]])
            kept = {name: value for name, value in message.items() if name != "tool_calls"}
            yield {**kept, "content": "\n".join(filter(None, [message["content"], calls]))}
        else:
            yield message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _function(tool: Any) -> Any:
    return tool.get("function", tool) if isinstance(tool, Mapping) else tool
