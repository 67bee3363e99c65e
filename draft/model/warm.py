"""A greedy request as it would be if it were sampled: for scores of more than its best token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.types import RequestView, ThinkingLaw

# A greedy target takes its best token: the draft model's best is it more often than its probability
# says. Below 1 that is nearer; at 1, trees were too wide.
WARM = {"temperature": 0.6, "top_k": -1, "top_p": 1.0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Warm:
    """A view at a mild temperature, with the request's own bias, penalties and ends."""

    id: int
    tokens: list[int]
    prompt_length: int
    end_ids: frozenset[int]
    computed: int
    params: SamplingParams
    speculation: Speculation
    groups: int | None
    seed: int
    reach: int
    reproducible: bool
    thinking: ThinkingLaw | None

    @classmethod
    def of(cls, request: RequestView) -> Self:
        """Of a request as it stands."""
        return cls(
            id=request.id,
            tokens=request.tokens,
            prompt_length=request.prompt_length,
            end_ids=request.end_ids,
            computed=request.computed,
            params=request.params.model_copy(update=WARM),
            speculation=request.speculation,
            groups=request.groups,
            seed=request.seed,
            reach=request.reach,
            reproducible=request.reproducible,
            thinking=request.thinking,
        )
