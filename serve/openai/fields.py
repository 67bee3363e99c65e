"""Fields that OpenAI's protocols share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fastslow.serve.api.fields import NO_EFFECT, Ignored
from fastslow.serve.api.sampling_fields import Count, SamplingFields
from fastslow.serve.api.settings import ServerSettings


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

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

    def common_sampling(self) -> dict[str, Any]:
        n = self.n if self.n is not None and self.n > 1 else None
        return {**super().common_sampling(), "n": n, "stop": self.stop or None}

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

    @property
    def shows_thought(self) -> bool:
        return self.include_reasoning is not False and not self.hides_thought
