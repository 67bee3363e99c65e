"""What /v1/responses takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.serve.api.fields import NO_EFFECT, Ignored
from fastslow.serve.api.grammar_fields import format_grammar
from fastslow.serve.api.sampling_fields import Count, SamplingFields
from fastslow.serve.observe.answer_metrics import AnswerMetrics
from fastslow.serve.openai.chat_schema import JsonSchemaFormat
from fastslow.serve.openai.fields import AccountFields
from fastslow.serve.openai.response_input import InputItem

KEEPS_NOTHING = "this server keeps no answers; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"


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
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
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
        """Refuse what needs a server that keeps something, or that tells log-probabilities here.

        Raises:
            ValueError: one sentence.
        """
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
        return {**self.common_sampling(), "max_tokens": self.max_output_tokens}

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        found = super().grammars()
        if self.text is None or self.text.format is None:
            return found
        wanted = self.text.format
        return found + format_grammar("text.format", wanted.type, wanted.schema_)


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens, exactly."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputItem(BaseModel):
    """A thought, a text or a call."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["reasoning", "message", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(BaseModel):
    """The answer, and what was asked."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage
    metrics: AnswerMetrics
    trace: Any = None
