"""The choice between several modes for a request: by what the model itself holds of its prompt, once it has read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fastslow.engine.params import Count, Number, Params
from fastslow.policies.features import features
from fastslow.policies.mode_router import ModeChoice, PromptFacts

F64s = NDArray[np.float64]
Rows = tuple[tuple[Number, ...], ...]


class LearnedModeRouter(Params):
    """Takes the mode with the largest chance of a right answer less `cost` for each of its tokens. Both are linear in
    the hidden state at the prompt's end; a chance is 1 / (1 + exp(-(weights @ hidden + bias))). The first mode reads
    the prompt, and it is read again only where another one is taken. `fastslow tune --modes` fits it to graded
    tasks. It is data: nothing in it is run.
    """

    between: tuple[str, ...] = Field(
        min_length=1, description="presets; the first reads the prompt"
    )
    layer: Count = Field(description="whose output is looked at, 0 = the first")
    weights: Rows = Field(description="of the chances, [modes][hidden size]")
    bias: tuple[Number, ...] = Field(description="of the chances, [modes]")
    token_weights: Rows = Field(description="of the answer's tokens, [modes][hidden size]")
    tokens: tuple[Number, ...] = Field(description="bias of the answer's tokens, [modes]")
    cost: Number = Field(default=0.0, description="of a token, in right answers")

    @model_validator(mode="after")
    def _alike(self) -> LearnedModeRouter:
        every = self.weights, self.bias, self.token_weights, self.tokens
        sizes = {len(row) for row in (*self.weights, *self.token_weights)}
        if {len(part) for part in every} != {len(self.between)} or len(sizes) != 1:
            raise ValueError(f"weights must have a row of one length for each of {self.between}")
        return self

    def __call__(self, facts: PromptFacts) -> ModeChoice:
        """The mode that reads the prompt."""
        return ModeChoice(self.between[0], "")

    def judge(self, facts: PromptFacts) -> Callable[[torch.Tensor], tuple[int, str]]:
        """Return a function from a hidden state [H] to (place of a mode, why). Where others wait or the caller has a
        latency target, tokens cost more: their price is multiplied by 1 + the features `load` and `urgency`."""
        seen = features(facts)
        cost = self.cost * (1 + seen["load"] + seen["urgency"])

        def place(hidden_H: torch.Tensor) -> tuple[int, str]:
            chances, tokens = self.outlook(hidden_H.double().numpy())
            taken = int((chances - cost * tokens).argmax())
            parts = zip(self.between, chances, tokens, strict=True)
            each = ", ".join(f"{name} {chance:.0%} for {n:.0f} tokens" for name, chance, n in parts)
            return taken, f"{self.between[taken]}: chances {each}, at {cost:.2%} a token"

        return place

    def outlook(self, hidden: F64s) -> tuple[F64s, F64s]:
        """Chances of a right answer and tokens of the answer [..., modes] by hidden states [..., H]."""
        weights, bias, token_weights, base = self._arrays
        chances = 1 / (1 + np.exp(-np.clip(hidden @ weights.T + bias, -500, 500)))
        return chances, np.maximum(hidden @ token_weights.T + base, 1.0)

    @cached_property
    def _arrays(self) -> tuple[F64s, ...]:
        return tuple(map(np.array, (self.weights, self.bias, self.token_weights, self.tokens)))
