"""Checks the messages of a chat: their contents, calls of tools and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastslow.engine.params import shown

Message = Mapping[str, object]  # role, content, and whatever else a template may know
Turn = Mapping[str, Any]  # the same, checked: its content is text

ROLES = ("system", "user", "assistant", "tool")
MOST_VALUES = 131_072  # of the JSON text of a call's arguments: nothing else runs while it is read


def check_messages(messages: Sequence[Message]) -> list[Turn]:
    """The messages, with parts of a content joined by line breaks, and arguments of calls as objects.

    ValueError in one sentence for the first one whose role is not among ROLES, whose content is neither a string
    nor a list of text parts, whose calls or results have another shape than OpenAI's, or that is a `prefix`
    without being the last one and the assistant's."""
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    checked: list[Turn] = []
    called: dict[str, str] = {}
    for index, message in enumerate(messages):
        if not hasattr(message, "get"):
            raise _other(f"messages[{index}]", message, "have a role and a content")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(
                f"messages[{index}].role is {shown(role)}; it must be one of {', '.join(ROLES)}"
            )
        message = _tool_fields(f"messages[{index}]", _thought(index, message), called)
        content = message.get("content")
        if (prefix := message.get("prefix")) is not None:
            if not isinstance(prefix, bool):
                raise ValueError(
                    f"messages[{index}].prefix is {shown(prefix)}; it must be true or false"
                )
            if prefix and (role != "assistant" or index + 1 < len(messages)):
                raise ValueError(
                    f"messages[{index}].prefix is true, but only the last message may be the "
                    "beginning of an answer, and must be the assistant's"
                )
        match content:
            case str():
                checked.append(message)
            case list() | tuple():
                place = f"messages[{index}].content"
                text = "\n".join(_part(f"{place}[{i}]", part) for i, part in enumerate(content))
                checked.append({**message, "content": text})
            case None:
                raise ValueError(f"messages[{index}].content is missing; it must be a string")
            case _:
                raise _other(f"messages[{index}].content", content, "be a string")
    return checked


def _other(place: str, value: object, must: str) -> ValueError:
    return ValueError(f"{place} is a {type(value).__name__}; it must {must}")


def _thought(index: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose thought has both names that are in use: templates know one of them."""
    if not ("reasoning_content" in message or "reasoning" in message):
        return message
    for name in ("reasoning_content", "reasoning"):
        if not isinstance(message.get(name), str | None):
            raise _other(f"messages[{index}].{name}", message[name], "be a string")
    thought = message.get("reasoning_content") or message.get("reasoning")
    rest = {k: v for k, v in message.items() if k not in ("reasoning_content", "reasoning")}
    return rest if not thought else {**rest, "reasoning_content": thought}


def _part(place: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise ValueError(f"{place} is a {type(part).__name__}; a part must have a type and a text")
    if (kind := part.get("type")) != "text":
        raise ValueError(f"{place}.type is {shown(kind)}; this engine takes only 'text'")
    if not isinstance(text := part.get("text"), str):
        raise _other(f"{place}.text", text, "be a string")
    return text


def _tool_fields(
    place: str, message: Mapping[str, Any], names: dict[str, str]
) -> Mapping[str, Any]:
    """A message's calls or result. A result's function is looked up in `names` by id, where it says none."""
    if message["role"] == "tool":
        for field in ("tool_call_id", "name"):
            if not isinstance(message.get(field), str | None):
                raise _other(f"{place}.{field}", message[field], "be a string")
        if message.get("name") is None and message.get("tool_call_id") in names:
            message = {**message, "name": names[message["tool_call_id"]]}
    if "tool_calls" not in message:
        return message
    calls = message["tool_calls"]
    if not calls:
        return {name: value for name, value in message.items() if name != "tool_calls"}
    if message["role"] != "assistant":
        raise ValueError(
            f"{place}.tool_calls: only the assistant calls tools, not {message['role']}"
        )
    if not isinstance(calls, list | tuple):
        raise _other(f"{place}.tool_calls", calls, "be a list")
    checked = [_call(f"{place}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    for call in checked:
        if isinstance(id := call.get("id"), str):
            names[id] = call["function"]["name"]
    content = message.get("content")
    return {**message, "content": "" if content is None else content, "tool_calls": checked}


def _call(place: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise ValueError(f"{place} must have a function with a name and arguments")
    if not isinstance(name := function.get("name"), str) or not name:
        raise ValueError(f"{place}.function.name is {shown(name)}; it must be a function's name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str | Mapping | None):
        raise _other(f"{place}.function.arguments", arguments, "be an object, or its JSON text")
    if isinstance(arguments, str) and _holds_much(arguments):
        raise ValueError(f"{place}.function.arguments holds more than {MOST_VALUES} values")
    function = {**function, "arguments": as_object(arguments)}
    return {"type": "function", **call, "function": function}


def _holds_much(text: str) -> bool:
    """Tell whether a JSON text has more values than are read at once; marks in its texts do not count."""
    plain = text.replace("\\\\", "").replace('\\"', "")
    if plain.count('"') > 4 * MOST_VALUES:  # a name and a text for each
        return True
    outside = "".join(plain.split('"')[::2])
    return sum(outside.count(mark) for mark in "[{,") > MOST_VALUES


def as_object(arguments: str | Mapping[str, Any] | None) -> str | Mapping[str, Any]:
    """Parse arguments as a JSON object; return a text that is not one unchanged."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments


RESPONSES = "tool_responses"  # in templates that want results beside their calls


def with_responses(turns: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checked messages with results in the messages that called for them."""
    found: list[Mapping[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool" and found and "tool_calls" in found[-1]:
            given = {"name": turn.get("name") or "unknown", "response": as_object(turn["content"])}
            found[-1] = {**found[-1], RESPONSES: [*found[-1].get(RESPONSES, ()), given]}
        else:
            found.append(turn)
    return found


def as_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checked message with the arguments of its calls as JSON texts, for templates that join them."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}
