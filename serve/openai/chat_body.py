"""What /v1/chat/completions takes, and what /v1/completions shares with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.fields import NO_EFFECT, Count, Ignored, SamplingFields, format_grammar
from fastslow.serve.api.turns import Part, texts_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class StreamOptions(BaseModel):
    """What a stream has besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool | None = Field(
        default=None, description="a last chunk with the usage"
    )
    include_sources: StrictBool | None = Field(
        default=None, description="each delta has its token_ids and, in `sources`, who drafted them"
    )
    include_obfuscation: StrictBool | None = Field(default=None, description=NO_EFFECT)


class AccountFields(BaseModel):
    """What OpenAI takes for its own books."""

    user: Ignored = Field(default=None, description=NO_EFFECT)
    store: Ignored = Field(default=None, description=NO_EFFECT)
    service_tier: Ignored = Field(default=None, description=NO_EFFECT)
    safety_identifier: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_key: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_options: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_retention: Ignored = Field(default=None, description=NO_EFFECT)
    moderation: Ignored = Field(default=None, description=NO_EFFECT)


class OpenAIFields(AccountFields, SamplingFields):
    """What chats and completions share."""

    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = 1
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: Count | None = None
    include_reasoning: StrictBool | None = Field(
        default=None, description="false leaves the thought out of the answer"
    )
    metadata: Ignored = Field(default=None, description=NO_EFFECT)

    def sampling(self) -> dict[str, Any]:
        n = self.n if self.n is not None and self.n > 1 else None
        return {**super().sampling(), "n": n, "stop": self.stop or None}

    def check_n(self, prompts: int, settings: ServerSettings) -> None:
        """Refuse more answers than the settings allow, those to all prompts together."""
        n = self.n or 1
        if n * prompts > settings.n:
            what = f"n={n}" if prompts == 1 else f"n={n} for each of {prompts} prompts"
            raise ValueError(f"{what} must be at most {settings.n} answers")

    def check_stream(self) -> None:
        """Options of a stream belong to one, as with OpenAI."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must be left out unless stream is true")

    def streams(self, option: str) -> bool:
        """Whether an option of the stream is on."""
        return bool(getattr(self.stream_options, option, False))

    @property
    def shows_thought(self) -> bool:
        return self.include_reasoning is not False and not self.hides_thought


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
        default=None, description="the answer continues this message, the last one"
    )


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
    content: str | Annotated[list[Part], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        """Raises ValueError for a part that is no text."""
        if isinstance(self.content, str):
            return self.content
        for place, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                raise ValueError(
                    f"prediction.content[{place}] must be of type 'text' and have a text"
                )
        return "".join(part.text or "" for part in self.content)


class ChatRequest(OpenAIFields):
    """A chat."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0)] | None = None
    max_completion_tokens: Count | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    verbosity: Ignored = Field(default=None, description=NO_EFFECT)

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError(
                f"max_tokens={shown(both[0])} and max_completion_tokens={shown(both[1])} contradict each "
                "other: give one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs must be left out unless logprobs is true")
        return {
            **super().sampling(),
            "max_tokens": both[0] if both[1] is None else both[1],
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
