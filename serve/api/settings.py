"""What the operator of a server sets: limits of what clients may ask, and what holds where they say nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fastslow.engine.params import MOST, Params, nearest, shown

Count = Annotated[int, Field(ge=1, le=MOST)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]

EFFORTS: dict[str, str | dict[str, Any]] = {
    "none": {"base": "fast", "thinking": "off"},
    "minimal": "fast",
    "low": {"base": "deep", "thinking_budget": 1024},
    "medium": {"base": "deep", "thinking_budget": 4096},
    "high": "deep",
    "xhigh": "deep",
    "max": "deep",
}


class ServerSettings(Params):
    """Limits hold before time or memory is spent; whatever is above one is refused with one sentence."""

    body_bytes: Count = Field(default=4 * 2**20, description="most bytes of a request's body")
    json_depth: Count = Field(default=100, description="most levels of lists and objects in it")
    json_parts: Count = Field(default=30_000, description="most lists and objects in it")
    prompt_characters: Count = Field(default=2 * 2**20, description="most characters of a prompt")
    messages: Count = Field(default=4096, description="most messages of a chat")
    prompts: Count = Field(default=64, description="most prompts of one call to /v1/completions")
    n: Annotated[int, Field(ge=1, le=128)] = Field(
        default=16, description="most answers to a call, all its prompts together"
    )
    stops: Annotated[int, Field(ge=1, le=64)] = Field(default=32, description="most stop strings")
    logprobs: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=20, description="most likeliest tokens with log-probabilities"
    )
    biases: Count = Field(default=1000, description="most entries of logit_bias")
    grammar_bytes: Count = Field(
        default=128 * 1024, description="most bytes of a schema, an expression or a grammar"
    )
    longest_timeout: Seconds = Field(default=3600, description="most seconds that a client may ask")
    timeout: Seconds = Field(
        default=600, description="seconds after which an answer ends, where a client says nothing"
    )
    write_timeout: Seconds = Field(
        default=60, description="a client that takes nothing for so many seconds is left"
    )
    heartbeat: Seconds = Field(
        default=5, description="a comment goes into a silent stream every so many seconds"
    )
    default_mode: str = Field(default="deep", description="the mode where a client says nothing")
    keep_thoughts: bool = Field(
        default=False,
        description="whether chats keep the thoughts of earlier turns, where a client says nothing",
    )
    efforts: dict[str, str | dict[str, Any]] = Field(
        default_factory=lambda: dict(EFFORTS),
        description="what each reasoning_effort means: a mode's name, or a mode's fields",
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=1.0, description="where neither a client nor the mode says"
    )
    max_tokens: Count | None = Field(
        default=None,
        description="most tokens of a chat's answer, where neither a client nor the mode says; "
        "None = as many as fit the context",
    )
    completion_tokens: Count = Field(
        default=16, description="the same for /v1/completions, where 16 is OpenAI's number"
    )
    any_model: bool = Field(
        default=False, description="take every model's name as the one that is served"
    )
    aliases: tuple[str, ...] = Field(default=(), description="further names of the model")
    thoughts_as: tuple[Literal["reasoning_content", "reasoning"], ...] = Field(
        default=("reasoning_content", "reasoning"),
        description="fields of an answer that hold the thought",
    )

    def fit(self, modes: Collection[str]) -> None:
        """See whether a model has the default mode.

        Args:
            modes: that it has.

        Raises:
            ValueError: it has not.
        """
        if self.default_mode not in modes:
            known = nearest(self.default_mode, modes)
            raise ValueError(f"default mode {shown(self.default_mode)} is unknown{known}")

    @field_validator("efforts")
    @classmethod
    def _every_effort(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in EFFORTS:
                raise ValueError(f"effort {shown(name)} is unknown{nearest(name, EFFORTS)}")
        return {**EFFORTS, **given}

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams` that hold where neither a client nor the mode gives them."""
        most = MOST if self.max_tokens is None else self.max_tokens
        return {"temperature": self.temperature, "max_tokens": most}
