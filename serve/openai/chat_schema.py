"""What /v1/chat/completions takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import shown
from fastslow.serve.api.fields import NO_EFFECT, Ignored
from fastslow.serve.api.grammar_fields import format_grammar
from fastslow.serve.api.sampling_fields import Count
from fastslow.serve.api.turns import Part
from fastslow.serve.observe.answer_metrics import AnswerMetrics
from fastslow.serve.openai.fields import OpenAIFields
from fastslow.serve.openai.logprobs import ChatLogprobs
from fastslow.serve.openai.messages import ChatMessage
from fastslow.serve.openai.usage import Finish, Usage


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
        """Fields of `SamplingParams`, by their names there.

        Raises:
            ValueError: fields contradict each other.
        """
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError(
                f"max_tokens={shown(both[0])} and max_completion_tokens={shown(both[1])} contradict each "
                "other: give one of them"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs must be left out unless logprobs is true")
        return {
            **self.common_sampling(),
            "max_tokens": both[0] if both[1] is None else both[1],
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        found, wanted = super().grammars(), self.response_format
        if wanted is None:
            return found
        schema = None if wanted.json_schema is None else wanted.json_schema.schema_
        return found + format_grammar("response_format", wanted.type, schema, "json_schema.schema")


class FunctionCall(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(BaseModel):
    """The answer; its thought in the fields that the server's settings name."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: str | int | None = Field(description="the stop string or end token that was met")
    metrics: AnswerMetrics | None = None


class ChatCompletion(BaseModel):
    """The answers to a chat. `metrics` are the first one's; with several each has its own."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: AnswerMetrics
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    trace: Any = None
