"""What /v1/messages and /v1/messages/count_tokens take, and how chat templates read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from fastslow.engine.params import shown
from fastslow.serve.api.fields import NO_EFFECT, Count, Ignored, SamplingFields, format_grammar
from fastslow.serve.api.mode_fields import Effort
from fastslow.serve.api.turns import Part, texts_of

Role = Literal["user", "assistant", "system"]
READ: dict[Role, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}


class Block(BaseModel):
    """A block of a content. Fields that are not listed are left out of the prompt."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=256)]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    is_error: StrictBool | None = Field(
        default=None, description="the prompt has the result's text alone"
    )


class HistoryMessage(BaseModel):
    """One turn, or with results of tools several. Where the last one is the assistant's, the answer goes
    on from it."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    content: str | Annotated[list[Block], Field(fail_fast=True)]


class OutputFormat(BaseModel):
    """The schema that an answer must keep to."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, serialize_by_alias=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """How much work goes into the answer, and its form."""

    model_config = ConfigDict(extra="forbid")

    effort: Effort | None = None
    format: OutputFormat | None = None


class PromptRequest(SamplingFields):
    """A conversation, and how it is to be answered."""

    messages: Annotated[list[HistoryMessage], Field(min_length=1, fail_fast=True)]
    system: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: Ignored = Field(default=None, description=NO_EFFECT)
    context_management: Ignored = Field(default=None, description=NO_EFFECT)
    speed: Ignored = Field(default=None, description=NO_EFFECT)
    user_profile_id: Ignored = Field(default=None, description=NO_EFFECT)
    workspace_id: Ignored = Field(default=None, description=NO_EFFECT)

    def efforts(self) -> dict[str, Effort | None]:
        wanted = None if self.output_config is None else self.output_config.effort
        return {**super().efforts(), "output_config.effort": wanted}

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        found = super().grammars()
        if self.output_config is None or self.output_config.format is None:
            return found
        wanted = self.output_config.format
        return found + format_grammar("output_config.format", wanted.type, wanted.schema_)


class MessagesRequest(PromptRequest):
    """The same, to be answered."""

    max_tokens: Count
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)] | None
    ) = None
    stream: StrictBool | None = False
    metadata: Ignored = Field(default=None, description=NO_EFFECT)
    service_tier: Ignored = Field(default=None, description=NO_EFFECT)
    inference_geo: Ignored = Field(default=None, description=NO_EFFECT)
    diagnostics: Ignored = Field(default=None, description=NO_EFFECT)

    def sampling(self) -> dict[str, Any]:
        stop = self.stop_sequences or None
        return {**super().sampling(), "max_tokens": self.max_tokens, "stop": stop}


def as_turns(
    system: str | Sequence[Part] | None, messages: Sequence[HistoryMessage]
) -> list[dict[str, Any]]:
    """The messages as `LLM` takes them."""
    turns: list[dict[str, Any]] = []
    if system:
        turns.append({"role": "system", "content": "\n".join(texts_of("system", system))})
    for place, message in enumerate(messages):
        where = f"messages[{place}].content"
        if isinstance(message.content, str):
            turns.append({"role": message.role, "content": message.content})
            continue
        blocks = [
            (f"{where}[{at}]", _read(f"{where}[{at}]", block, message.role))
            for at, block in enumerate(message.content)
        ]
        turns += _said(blocks) if message.role == "assistant" else _asked(message.role, blocks)
    if not turns:
        raise ValueError("messages hold nothing to read")
    last = turns[-1]
    if last["role"] == "assistant" and "tool_calls" not in last:
        last["prefix"] = True
    return turns


Blocks = Sequence[tuple[str, Block]]  # each with its place, for messages


def _read(where: str, block: Block, role: Role) -> Block:
    if block.type not in READ[role]:
        kinds = ", ".join(READ[role])
        raise ValueError(
            f"{where}.type={shown(block.type)} is not read here; from role {role!r} these are: {kinds}"
        )
    return block


def _asked(role: Role, blocks: Blocks) -> list[dict[str, Any]]:
    """Turns of a user: what is said between results of tools, and each result."""
    turns: list[dict[str, Any]] = []
    texts: list[str] = []
    for where, block in blocks:
        if block.type == "text":
            texts.append(_given(f"{where}.text", block.text))
            continue
        if texts:
            turns.append({"role": role, "content": "\n".join(texts)})
            texts = []
        id = _given(f"{where}.tool_use_id", block.tool_use_id)
        result = "\n".join(texts_of(f"{where}.content", block.content or ""))
        turns.append({"role": "tool", "content": result, "tool_call_id": id})
    if texts or not turns:
        turns.append({"role": role, "content": "\n".join(texts)})
    return turns


def _said(blocks: Blocks) -> list[dict[str, Any]]:
    """The turn of an assistant. Its texts are one text, which calls may have cut in two."""
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        match block.type:
            case "text":
                texts.append(_given(f"{where}.text", block.text))
            case "redacted_thinking":
                pass  # of another server, which alone can read it
            case "thinking":
                thoughts.append(_given(f"{where}.thinking", block.thinking))
            case _:
                name = _given(f"{where}.name", block.name)
                function = {"name": name, "arguments": block.input or {}}
                id = _given(f"{where}.id", block.id)
                calls.append({"id": id, "type": "function", "function": function})
    turn: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        turn["reasoning_content"] = "".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return [turn]


def _given(where: str, value: str | None) -> str:
    if value is None:
        raise ValueError(f"{where} is missing; it must be a text")
    return value
