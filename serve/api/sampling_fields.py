"""Fields of a request that say how an answer is drawn, by names that several protocols share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt

from fastslow.engine.params import MOST, Number
from fastslow.serve.api.fields import FastslowFields

Count = Annotated[StrictInt, Field(ge=1, le=MOST)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
SEEDS = 2**63  # a negative seed means the one that has the same 63 bits
MOST_BIASES = 20_000  # that are looked at; the settings allow fewer


def _bounded(biases: object) -> object:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(
            f"logit_bias has {len(biases)} entries; at most {MOST_BIASES} are looked at"
        )
    return biases


class SamplingFields(FastslowFields):
    """The model, and what OpenAI calls these fields; other protocols take all of them, too."""

    model: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="a name of /v1/models; NAME:MODE stands for a model in a mode"
    )
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
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

    def common_sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, by their names there."""
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")
        seed = None if self.seed is None else self.seed % SEEDS
        return {**{name: getattr(self, name) for name in names}, "seed": seed}
