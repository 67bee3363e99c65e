"""Messages of a chat, as OpenAI's clients send them and as chat templates read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from fastslow.serve.api.turns import Part, texts_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class ChatMessage(BaseModel):
    """One turn. Fields that are not listed are left out of the prompt."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    reasoning_content: str | None = Field(
        default=None, description="the thought of an earlier answer"
    )
    reasoning: str | None = Field(default=None, description="the same")
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    prefix: StrictBool | None = Field(
        default=None, description="the answer goes on from this message, the last one"
    )


def as_turns(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as `LLM` takes them.

    Raises:
        ValueError: a message has nothing to read, or a part that is no text.
    """
    return [_turn(place, message) for place, message in enumerate(messages)]


def _turn(place: int, message: ChatMessage) -> dict[str, Any]:
    role, where = ROLES[message.role], f"messages[{place}]"
    turn: dict[str, Any] = {"role": role, "content": _content(where, message)}
    if message.name is not None:
        turn["name"] = message.name
    if role == "assistant":
        thought = _thought(where, message)
        if thought is not None:
            turn["reasoning_content"] = thought
        if message.tool_calls:
            turn["tool_calls"] = message.tool_calls
    elif message.tool_calls:
        raise ValueError(
            f"{where}.tool_calls belongs to the assistant, not to role {message.role!r}"
        )
    if role == "tool" and message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.prefix is not None:
        turn["prefix"] = message.prefix
    return turn


def _content(where: str, message: ChatMessage) -> str:
    if message.content is None:
        if message.role == "assistant" and message.tool_calls:
            return ""
        raise ValueError(f"{where}.content is missing; it must be a text or a list of text parts")
    return "\n".join(texts_of(f"{where}.content", message.content))


def _thought(where: str, message: ChatMessage) -> str | None:
    """The thought of an answer in the history, under either name."""
    old, new = message.reasoning_content, message.reasoning
    if old is not None and new is not None and old != new:
        raise ValueError(f"{where}.reasoning_content and .reasoning differ: give one of them")
    return old if new is None else new
