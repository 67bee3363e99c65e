"""Bodies of /v1/messages and /v1/messages/count_tokens, and how chat templates read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from fastslow.engine.params import Effort, Positive, shown
from fastslow.serve.api.fields import Ignored, SharedFields, format_grammar
from fastslow.serve.api.mode_fields import optional
from fastslow.serve.api.turns import Parts, needed, texts_of

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
    content: str | Parts | None = None
    is_error: StrictBool | None = optional("the prompt has the result's text alone")


class HistoryMessage(BaseModel):
    """A message of the chat: one turn, or several with results of tools. Where the last one is the assistant's,
    the answer continues it."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    content: str | Annotated[list[Block], Field(fail_fast=True)]


class OutputFormat(BaseModel):
    """The schema that an answer must keep to."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, serialize_by_alias=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """Effort of the answer, and its form."""

    model_config = ConfigDict(extra="forbid")

    effort: Effort | None = None
    format: OutputFormat | None = None


class PromptRequest(SharedFields):
    """A conversation, and how it is to be answered."""

    messages: Annotated[list[HistoryMessage], Field(min_length=1, fail_fast=True)]
    system: str | Parts | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: Ignored = None
    context_management: Ignored = None
    speed: Ignored = None
    user_profile_id: Ignored = None
    workspace_id: Ignored = None

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
    """The body of /v1/messages."""

    max_tokens: Positive
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True)] | None
    ) = None
    stream: StrictBool | None = False
    metadata: Ignored = None
    service_tier: Ignored = None
    inference_geo: Ignored = None
    diagnostics: Ignored = None

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | {"stop": self.stop_sequences or None}


def as_turns(
    system: str | Parts | None, messages: Sequence[HistoryMessage]
) -> list[dict[str, Any]]:
    """The messages as `LLM` takes them."""
    turns: list[dict[str, Any]] = []
    if system:
        turns.append({"role": "system", "content": "\n".join(texts_of("system", system))})
    for place, message in enumerate(messages):
        if isinstance(message.content, str):
            turns.append({"role": message.role, "content": message.content})
            continue
        where = f"messages[{place}].content"
        blocks = [(f"{where}[{at}]", block) for at, block in enumerate(message.content)]
        for at, block in blocks:
            if block.type not in READ[message.role]:
                kinds = ", ".join(READ[message.role])
                raise ValueError(
                    f"{at}.type={shown(block.type)} is not read here; from role {message.role!r} "
                    f"these are: {kinds}"
                )
        is_answer = message.role == "assistant"
        turns += [_answer(blocks)] if is_answer else _question(message.role, blocks)
    if not turns:
        raise ValueError("messages hold nothing to read")
    if turns[-1]["role"] == "assistant" and "tool_calls" not in turns[-1]:
        turns[-1]["prefix"] = True
    return turns


Blocks = Sequence[tuple[str, Block]]  # each with its place, for messages


def _question(role: Role, blocks: Blocks) -> list[dict[str, Any]]:
    """Turns of a user: what is said between results of tools, and each result."""
    turns: list[dict[str, Any]] = []
    texts: list[str] = []
    for where, block in blocks:
        if block.type == "text":
            texts.append(needed(f"{where}.text", block.text))
            continue
        if texts:
            turns.append({"role": role, "content": "\n".join(texts)})
            texts = []
        id = needed(f"{where}.tool_use_id", block.tool_use_id)
        result = "\n".join(texts_of(f"{where}.content", block.content or ""))
        turns.append({"role": "tool", "content": result, "tool_call_id": id})
    if texts or not turns:
        turns.append({"role": role, "content": "\n".join(texts)})
    return turns


def _answer(blocks: Blocks) -> dict[str, Any]:
    """The turn of an assistant. Its texts are one text, which calls may have cut in two."""
    turn: dict[str, Any] = {"role": "assistant", "content": ""}
    for where, block in blocks:
        match block.type:
            case "text":
                turn["content"] += needed(f"{where}.text", block.text)
            case "thinking":
                thought = needed(f"{where}.thinking", block.thinking)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + thought
            case "tool_use":
                name = needed(f"{where}.name", block.name)
                function = {"name": name, "arguments": block.input or {}}
                call = {"id": needed(f"{where}.id", block.id), "type": "function"}
                turn.setdefault("tool_calls", []).append({**call, "function": function})
            case "redacted_thinking":
                pass  # of another server, which alone can read it
    return turn
