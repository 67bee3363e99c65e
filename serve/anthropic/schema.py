"""What /v1/messages and /v1/messages/count_tokens take and give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from fastslow.serve.anthropic.history import HistoryMessage
from fastslow.serve.api.fields import NO_EFFECT, Ignored
from fastslow.serve.api.grammar_fields import format_grammar
from fastslow.serve.api.mode_fields import Effort
from fastslow.serve.api.sampling_fields import Count, SamplingFields
from fastslow.serve.api.turns import Part
from fastslow.serve.observe.answer_metrics import AnswerMetrics

Stop = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


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

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        return self.common_sampling()

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
        return {**self.common_sampling(), "max_tokens": self.max_tokens, "stop": stop}


class TokenCount(BaseModel):
    """Tokens of a conversation's prompt, whether they are in the prefix cache or not."""

    input_tokens: int


class ThoughtDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """Tokens, exactly. The prompt has those of `input_tokens` and of `cache_read_input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThoughtDetails


class AnswerBlock(BaseModel):
    """A thought, a text or a call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["thinking", "text", "tool_use"]


class MessageAnswer(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: Stop
    stop_sequence: str | None
    usage: MessageUsage
    metrics: AnswerMetrics
    trace: Any = None
