"""Fields that chats and completions share in OpenAI's protocol."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from fastslow.engine.params import MOST, Number, shown
from fastslow.serve.engine import ModelCard
from fastslow.serve.errors import ApiError
from fastslow.serve.fields import NO_EFFECT, FastslowFields, Ignored
from fastslow.serve.settings import ServerSettings

Count = Annotated[StrictInt, Field(ge=1, le=MOST)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
SEEDS = 2**63  # a negative seed means the one that has the same 63 bits
MODE = ":"  # stands between a model's name and a mode's

MOST_BIASES = 20_000  # that are looked at; the settings allow fewer


def _bounded(biases: object) -> object:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(
            f"logit_bias has {len(biases)} entries; at most {MOST_BIASES} are looked at"
        )
    return biases


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


class OpenAIFields(FastslowFields):
    """Whose names and ranges are OpenAI's."""

    model: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="a name of /v1/models; NAME:MODE stands for a model in a mode"
    )
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = 1
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: Annotated[StrictInt, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[Number, Field(ge=-100, le=100)],
            ],
            BeforeValidator(_bounded),
        ]
        | None
    ) = None
    max_tokens: Count | None = None
    include_reasoning: StrictBool | None = Field(
        default=None, description="false leaves the thought out of the answer"
    )
    user: Ignored = Field(default=None, description=NO_EFFECT)
    metadata: Ignored = Field(default=None, description=NO_EFFECT)
    store: Ignored = Field(default=None, description=NO_EFFECT)
    service_tier: Ignored = Field(default=None, description=NO_EFFECT)
    safety_identifier: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_key: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_options: Ignored = Field(default=None, description=NO_EFFECT)
    prompt_cache_retention: Ignored = Field(default=None, description=NO_EFFECT)

    def common_sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")
        return {
            **{name: getattr(self, name) for name in names},
            "n": self.n if self.n is not None and self.n > 1 else None,
            "stop": self.stop or None,
            "seed": None if self.seed is None else self.seed % SEEDS,
        }

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


def served_mode(model: str | None, card: ModelCard, settings: ServerSettings) -> str | None:
    """The mode that a model's name holds; None: it holds none.

    Raises:
        ApiError: 404, no such model.
    """
    if model is None:
        return None
    name, mode = model, None
    if model not in (card.name, *settings.aliases):
        before, _, after = model.rpartition(MODE)
        if before and after in card.modes:
            name, mode = before, after
    if name in (card.name, *settings.aliases) or settings.any_model:
        return mode
    said = f"model={shown(model)} is not served here; this server has {card.name!r}"
    raise ApiError(404, said, param="model", code="model_not_found")
