"""Body of /v1/chat/completions, and the fields that OpenAI's other protocols share with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import Positive, shown
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.fields import Ignored, SharedFields, format_grammar
from fastslow.serve.api.mode_fields import optional
from fastslow.serve.api.turns import Parts, texts_of

ROLES = {
    "system": "system",
    "developer": "system",
    **{role: role for role in ("user", "assistant", "tool")},
}
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    """Options for what a stream has besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool | None = optional("a last chunk with the usage")
    include_sources: StrictBool | None = optional(
        "each delta has its token_ids and, in `sources`, who drafted them"
    )
    include_obfuscation: Ignored = None


class AccountFields(BaseModel):
    """Fields that OpenAI takes for its own books."""

    user: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    moderation: Ignored = None


class OpenAIFields(AccountFields, SharedFields):
    """Fields that chats and completions share."""

    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = 1
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: Positive | None = None
    include_reasoning: StrictBool | None = optional("false leaves the thought out of the answer")
    metadata: Ignored = None

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | {"stop": self.stop or None}

    def check(self, prompts: int, settings: ServerSettings) -> None:
        """Refuse more answers than the settings allow, those to all prompts together, and options of a stream without
        one."""
        n = self.n or 1
        if n * prompts > settings.n:
            what = f"n={n}" if prompts == 1 else f"n={n} for each of {prompts} prompts"
            raise ValueError(f"{what} must be at most {settings.n} answers")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must be left out unless stream is true")

    def streams(self, option: str) -> bool:
        """Tell whether an option of the stream is on."""
        return bool(getattr(self.stream_options, option, False))

    @property
    def shows_thought(self) -> bool:
        return self.include_reasoning is not False and not self.hides_thought


class ChatMessage(BaseModel):
    """A turn of a chat. Fields that are not listed are left out of the prompt."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = None
    reasoning_content: str | None = optional("the thought of an earlier answer")
    reasoning: str | None = optional("the same")
    tool_calls: Tools | None = None
    tool_call_id: str | None = None
    prefix: StrictBool | None = optional("the answer continues this message, the last one")


class JsonSchemaFormat(BaseModel):
    """The schema that an answer must keep to; it always does, strict or not."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, serialize_by_alias=True)

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class Prediction(BaseModel):
    """Text that the answer probably repeats: it is drafted, and changes no token."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["content"]
    content: str | Parts


class ChatRequest(OpenAIFields):
    """A chat."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0)] | None = None
    max_completion_tokens: Positive | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    verbosity: Ignored = None

    def sampling(self) -> dict[str, Any]:
        most, newer = self.max_tokens, self.max_completion_tokens
        if most is not None and newer is not None and most != newer:
            raise ValueError(
                f"max_tokens={shown(most)} and max_completion_tokens={shown(newer)} contradict each "
                "other: give one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs must be left out unless logprobs is true")
        return super().sampling() | {
            "max_tokens": most if newer is None else newer,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        found, wanted = super().grammars(), self.response_format
        if wanted is None:
            return found
        schema = None if wanted.json_schema is None else wanted.json_schema.schema_
        return found + format_grammar("response_format", wanted.type, schema, "json_schema.schema")


def as_turns(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as `LLM` takes them."""
    return [_turn(f"messages[{place}]", message) for place, message in enumerate(messages)]


def _turn(where: str, message: ChatMessage) -> dict[str, Any]:
    role, content, calls = ROLES[message.role], message.content, message.tool_calls
    if calls and role != "assistant":
        said = f"{where}.tool_calls belongs to the assistant, not to role {message.role!r}"
        raise ValueError(said)
    texts = texts_of(f"{where}.content", "" if calls and not content else content)
    turn: dict[str, Any] = {
        "role": role,
        "content": "\n".join(texts),
        "name": message.name,
        "prefix": message.prefix,
    }
    if role == "assistant":
        thought = message.reasoning_content if message.reasoning is None else message.reasoning
        turn |= {"reasoning_content": thought, "tool_calls": calls or None}
    if role == "tool":
        turn["tool_call_id"] = message.tool_call_id
    return {name: value for name, value in turn.items() if value is not None}
