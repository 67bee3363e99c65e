"""How an answer is drawn where a client leaves it open: the server's own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import create_model

from fastslow.engine.params import SamplingParams
from fastslow.serve.api.ask import Ask


def sampling_of(ask: Ask) -> SamplingParams:
    """The parameters of an ask. Its defaults give way to what the mode says.

    Raises:
        ValueError: one sentence about a field.
    """
    return _with(tuple(sorted(ask.defaults.items())))(**ask.sampling)


@lru_cache(64)
def _with(defaults: tuple[tuple[str, Any], ...]) -> type[SamplingParams]:
    """`SamplingParams` with other defaults: `fastslow.call.sampling_in` keeps them below a mode's fields."""
    fields = SamplingParams.model_fields
    own: Mapping[str, Any] = {
        name: (Annotated[fields[name].annotation, *fields[name].metadata], value)
        for name, value in defaults
    }
    return create_model("SamplingParams", __base__=SamplingParams, **own)
