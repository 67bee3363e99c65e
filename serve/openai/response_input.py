"""The input of /v1/responses, as chat templates read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastslow.engine.params import shown
from fastslow.serve.api.turns import Part, texts_of
from fastslow.serve.openai.messages import ROLES

KINDS = ("message", "reasoning", "function_call", "function_call_output")
ASKED = ("input_text", "text")
ANSWERED = ("output_text", "text")
THOUGHT = ("reasoning_text", "summary_text", "text")


class InputItem(BaseModel):
    """A message, a thought, a call or its result. Fields that are not listed are left out of the prompt."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=256)] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    summary: Annotated[list[Part], Field(fail_fast=True)] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Annotated[list[Part], Field(fail_fast=True)] | None = None


def as_turns(instructions: str | None, given: str | Sequence[InputItem]) -> list[dict[str, Any]]:
    """The input as `LLM` takes it. Items of one answer, from its thought on, are one turn.

    Raises:
        ValueError: an item is of a kind that is not read, or lacks what it must have.
    """
    turns: list[dict[str, Any]] = []
    if instructions:
        turns.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*turns, {"role": "user", "content": given}]
    for place, item in enumerate(given):
        where = f"input[{place}]"
        match item.type or "message":
            case "message":
                _message(turns, where, item)
            case "reasoning":
                _thought(turns, where, item)
            case "function_call":
                _call(turns, where, item)
            case "function_call_output":
                output = _texts(f"{where}.output", item.output, ASKED)
                content = "\n".join(output)
                id = _given(f"{where}.call_id", item.call_id)
                turns.append({"role": "tool", "content": content, "tool_call_id": id})
            case "item_reference":
                raise ValueError(
                    f"{where}.type='item_reference' is not read: this server keeps no items; send the item"
                )
            case other:
                kinds = ", ".join(KINDS)
                raise ValueError(
                    f"{where}.type={shown(other)} is not read here; these are: {kinds}"
                )
    return turns


def _message(turns: list[dict[str, Any]], where: str, item: InputItem) -> None:
    role = ROLES[_given(f"{where}.role", item.role)]
    kinds = ANSWERED if role == "assistant" else ASKED
    texts = _texts(f"{where}.content", item.content, kinds)
    if role != "assistant":
        turns.append({"role": role, "content": "\n".join(texts)})
        return
    text = "".join(texts)
    before = turns[-1] if turns else {}
    begun = "tool_calls" in before or ("reasoning_content" in before and not before["content"])
    turn = before if begun else _answer(turns)
    turn["content"] += text


def _thought(turns: list[dict[str, Any]], where: str, item: InputItem) -> None:
    """A thought begins an answer. One whose text is not there is left out, as if it had not been sent."""
    parts = item.content or item.summary or ""
    if text := "".join(texts_of(f"{where}.content", parts, THOUGHT)):
        _answer(turns)["reasoning_content"] = text


def _call(turns: list[dict[str, Any]], where: str, item: InputItem) -> None:
    """A call belongs to the answer that goes before it."""
    function = {
        "name": _given(f"{where}.name", item.name),
        "arguments": _given(f"{where}.arguments", item.arguments),
    }
    id = _given(f"{where}.call_id", item.call_id)
    turn = turns[-1] if turns and turns[-1]["role"] == "assistant" else _answer(turns)
    turn.setdefault("tool_calls", []).append({"id": id, "type": "function", "function": function})


def _answer(turns: list[dict[str, Any]]) -> dict[str, Any]:
    turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _texts(where: str, content: str | list[Part] | None, kinds: tuple[str, ...]) -> list[str]:
    if content is None:
        raise ValueError(f"{where} is missing; it must be a text or a list of text parts")
    return texts_of(where, content, kinds)


def _given(where: str, value: str | None) -> str:
    if value is None:
        raise ValueError(f"{where} is missing; it must be a text")
    return value
