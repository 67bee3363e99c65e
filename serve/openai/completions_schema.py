"""What /v1/completions takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt

from fastslow.engine.params import MOST, shown
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.observe.answer_metrics import AnswerMetrics
from fastslow.serve.openai.fields import OpenAIFields
from fastslow.serve.openai.logprobs import TextLogprobs
from fastslow.serve.openai.usage import Usage

TokenId = Annotated[StrictInt, Field(ge=0, le=MOST)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Prompts = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True)]
)


class CompletionRequest(OpenAIFields):
    """A text to go on from, token ids, or several of these."""

    prompt: Prompts
    logprobs: Annotated[StrictInt, Field(ge=0)] | None = None
    echo: StrictBool | None = Field(default=None, description="begin with the prompt")
    suffix: str | None = Field(default=None, description="not supported: must be left out")
    best_of: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="at most n: this server leaves none of the answers out"
    )
    allow_special: StrictBool | None = Field(
        default=None, description="special tokens that the prompt spells are marks, not text"
    )

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there.

        Raises:
            ValueError: a field that is not supported.
        """
        if self.suffix is not None and self.suffix != "":
            raise ValueError("suffix is not supported: this server fills in no middle of a text")
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise ValueError(f"best_of={self.best_of} must be at most n={self.n or 1}")
        made = {
            **self.common_sampling(),
            "max_tokens": self.max_tokens,
            "logprobs": self.logprobs,
        }
        if self.echo and self.logprobs is not None:
            if self.stream:
                raise ValueError("echo with logprobs must be asked without stream")
            made["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        return made


def as_prompts(prompt: Prompts, settings: ServerSettings) -> list[str | list[int]]:
    """Each prompt, as `LLM` takes it.

    Raises:
        ValueError: none, an empty one, too many, or too long.
    """
    prompts: list[Any] = list(prompt) if _are_several(prompt) else [prompt]
    if not prompts or not all(prompts):
        raise ValueError("prompt is empty: give at least one character or token")
    if len(prompts) > settings.prompts:
        raise ValueError(f"prompt has {len(prompts)} entries; at most {settings.prompts} are taken")
    size = sum(map(len, prompts))
    if size > settings.prompt_characters:
        limit = f"at most {settings.prompt_characters} are taken"
        raise ValueError(f"prompt={shown(prompt)} has {size} characters or tokens; {limit}")
    return prompts


def _are_several(prompt: Prompts) -> bool:
    return not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], int))


class CompletionChoice(BaseModel):
    """The text, without its thought; the thought is `reasoning`."""

    index: int
    text: str
    reasoning: str | None = None
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]
    stop_reason: str | int | None
    metrics: AnswerMetrics | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class TextCompletion(BaseModel):
    """The answers, those to the first prompt first. `metrics` are the first one's; with several each has
    its own."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    metrics: AnswerMetrics
    trace: Any = None
