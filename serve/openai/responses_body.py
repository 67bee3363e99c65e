"""Body of /v1/responses, and how chat templates read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import Positive, shown
from fastslow.serve.api.fields import Ignored, SharedFields, format_grammar
from fastslow.serve.api.mode_fields import optional
from fastslow.serve.api.turns import Parts, needed, texts_of
from fastslow.serve.openai.chat_body import ROLES, AccountFields, JsonSchemaFormat, Tools

KINDS = "message, reasoning, function_call, function_call_output"
ASKED = ("input_text", "text")
ANSWERED = ("output_text", "text")
THOUGHT = ("reasoning_text", "summary_text", "text")
KEEPS_NOTHING = "this server keeps no answers; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"
MetadataField = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class InputItem(BaseModel):
    """A message, a thought, a call or its result. Fields that are not listed are left out of the prompt."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=256)] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    summary: Parts | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Parts | None = None


class TextFormat(JsonSchemaFormat):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Ignored = None


class ResponsesRequest(AccountFields, SharedFields):
    """A conversation. The server keeps none of it."""

    input: str | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    text: TextConfig | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    stream: StrictBool | None = False
    stream_options: Ignored = None
    metadata: Annotated[MetadataField, Field(max_length=16)] | None = optional(
        "comes back in the answer"
    )
    truncation: Literal["disabled"] | None = None
    include: (
        Annotated[list[Annotated[str, Field(max_length=256)]], Field(fail_fast=True)] | None
    ) = optional("accepted; has no effect here")
    max_tool_calls: Ignored = None
    top_logprobs: Annotated[StrictInt, Field(ge=0)] | None = optional(
        "only 0: log-probabilities are in /v1/chat/completions"
    )
    background: StrictBool | None = optional("only false")
    previous_response_id: str | None = optional("only null")
    conversation: str | dict[str, Any] | None = optional("only null")
    prompt: dict[str, Any] | None = optional("only null")

    def check(self) -> None:
        """Refuse what needs a server that keeps something, or log-probabilities."""
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} must be left out: {KEEPS_NOTHING}")
        if self.background:
            raise ValueError(
                "background=True must be false: an answer is made while its client waits"
            )
        alone = "log-probabilities are in /v1/chat/completions alone"
        if LOGPROBS in (self.include or ()):
            raise ValueError(f"include has {LOGPROBS!r}, and {alone}")
        if self.top_logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} must be left out: {alone}")

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | {"max_tokens": self.max_output_tokens}

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
            case "reasoning":  # it begins an answer; one without a text is left out
                parts = item.content or item.summary or ""
                if text := "".join(texts_of(f"{where}.content", parts, THOUGHT)):
                    _answer(turns)["reasoning_content"] = text
            case "function_call":
                _call(turns, where, item)
            case "function_call_output":
                content = "\n".join(texts_of(f"{where}.output", item.output, ASKED))
                id = needed(f"{where}.call_id", item.call_id)
                turns.append({"role": "tool", "content": content, "tool_call_id": id})
            case other:
                said = f"{where}.type={shown(other)} is not read here; these are: {KINDS}"
                raise ValueError(said)
    return turns


def _message(turns: list[dict[str, Any]], where: str, item: InputItem) -> None:
    role = ROLES[needed(f"{where}.role", item.role)]
    kinds = ANSWERED if role == "assistant" else ASKED
    texts = texts_of(f"{where}.content", item.content, kinds)
    if role != "assistant":
        turns.append({"role": role, "content": "\n".join(texts)})
        return
    before = turns[-1] if turns else {}
    begun = "tool_calls" in before or ("reasoning_content" in before and not before["content"])
    turn = before if begun else _answer(turns)
    turn["content"] += "".join(texts)


def _call(turns: list[dict[str, Any]], where: str, item: InputItem) -> None:
    """A call belongs to the answer that goes before it."""
    function = {
        "name": needed(f"{where}.name", item.name),
        "arguments": needed(f"{where}.arguments", item.arguments),
    }
    id = needed(f"{where}.call_id", item.call_id)
    turn = turns[-1] if turns and turns[-1]["role"] == "assistant" else _answer(turns)
    turn.setdefault("tool_calls", []).append({"id": id, "type": "function", "function": function})


def _answer(turns: list[dict[str, Any]]) -> dict[str, Any]:
    turns.append({"role": "assistant", "content": ""})
    return turns[-1]
