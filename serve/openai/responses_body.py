"""What /v1/responses takes, and how chat templates read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import shown
from fastslow.serve.api.fields import NO_EFFECT, Count, Ignored, SamplingFields, format_grammar
from fastslow.serve.api.turns import Part, texts_of
from fastslow.serve.openai.chat_body import ROLES, AccountFields, JsonSchemaFormat

KINDS = ("message", "reasoning", "function_call", "function_call_output")
ASKED = ("input_text", "text")
ANSWERED = ("output_text", "text")
THOUGHT = ("reasoning_text", "summary_text", "text")
KEEPS_NOTHING = "this server keeps no answers; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"


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


class TextFormat(JsonSchemaFormat):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Ignored = Field(default=None, description=NO_EFFECT)


class ResponseStreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_obfuscation: StrictBool | None = Field(default=None, description=NO_EFFECT)


class ResponsesRequest(AccountFields, SamplingFields):
    """A conversation. The server keeps none of it."""

    input: str | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    stream: StrictBool | None = False
    stream_options: ResponseStreamOptions | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = Field(default=None, description="comes back in the answer")
    truncation: Literal["disabled"] | None = None
    include: (
        Annotated[list[Annotated[str, Field(max_length=256)]], Field(fail_fast=True)] | None
    ) = Field(default=None, description=NO_EFFECT)
    max_tool_calls: Ignored = Field(default=None, description=NO_EFFECT)
    top_logprobs: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None, description="only 0: /v1/chat/completions tells log-probabilities"
    )
    background: StrictBool | None = Field(default=None, description="only false")
    previous_response_id: str | None = Field(default=None, description="only null")
    conversation: str | dict[str, Any] | None = Field(default=None, description="only null")
    prompt: dict[str, Any] | None = Field(default=None, description="only null")

    def check(self) -> None:
        """Refuse what needs a server that keeps something, or that tells log-probabilities here."""
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} must be left out: {KEEPS_NOTHING}")
        if self.prompt is not None:
            raise ValueError("prompt must be left out: this server keeps no prompts")
        if self.background:
            raise ValueError(
                "background=True must be false: an answer is made while its client waits"
            )
        alone = "log-probabilities are told by /v1/chat/completions alone"
        if LOGPROBS in (self.include or ()):
            raise ValueError(f"include has {LOGPROBS!r}, and {alone}")
        if self.top_logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} must be left out: {alone}")

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        return {**super().sampling(), "max_tokens": self.max_output_tokens}

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        found = super().grammars()
        if self.text is None or self.text.format is None:
            return found
        wanted = self.text.format
        return found + format_grammar("text.format", wanted.type, wanted.schema_)


def as_turns(instructions: str | None, given: str | Sequence[InputItem]) -> list[dict[str, Any]]:
    """The input as `LLM` takes it. Items of one answer, from its thought on, are one turn."""
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
