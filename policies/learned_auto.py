"""Which of several modes a request gets: what the model itself holds of its prompt, once it has read it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fastslow.engine.params import Count, Number, Params
from fastslow.policies.mode_router import ModeChoice, PromptFacts

F64s = NDArray[np.float64]


class LearnedModeRouter(Params):
    """Takes the mode with the largest chance of a right answer less `cost` for each token of it. Both are linear in
    the hidden state at the prompt's end: chance = 1 / (1 + exp(-(weights @ hidden + bias))). The prompt is read in
    the first mode, and read again only where another one is taken. `fastslow tune --modes` fits it to graded
    tasks. It is data: nothing in it is run.
    """

    between: tuple[str, ...] = Field(
        min_length=1, description="presets; the prompt is read in the first one"
    )
    layer: Count = Field(description="whose output is looked at, 0 = the first")
    weights: tuple[tuple[Number, ...], ...] = Field(
        description="of the chances, [modes][hidden size]"
    )
    bias: tuple[Number, ...] = Field(description="of the chances, [modes]")
    token_weights: tuple[tuple[Number, ...], ...] = Field(
        description="of the answer's tokens, [modes][hidden size]"
    )
    tokens: tuple[Number, ...] = Field(
        description="of an answer with a hidden state of zeros, [modes]"
    )
    cost: Number = Field(default=0.0, description="of a token, in right answers")

    @model_validator(mode="after")
    def _alike(self) -> LearnedModeRouter:
        modes, sizes = len(self.between), {len(row) for row in (*self.weights, *self.token_weights)}
        counts = {len(part) for part in (self.weights, self.bias, self.token_weights, self.tokens)}
        if counts != {modes} or len(sizes) != 1:
            raise ValueError(
                f"weights must be alike: {modes} modes, {sorted(counts)} rows of {sorted(sizes)} numbers"
            )
        return self

    def __call__(self, facts: PromptFacts) -> ModeChoice:
        """The mode that reads the prompt."""
        return ModeChoice(self.between[0], "")

    def check(self, layers: int, hidden: int) -> None:
        """ValueError: it was fitted to a model of other sizes."""
        if self.layer >= layers or len(self.weights[0]) != hidden:
            raise ValueError(
                f"auto looks at layer {self.layer}, of {len(self.weights[0])} numbers; this model has {layers} layers "
                f"of {hidden}: fit it again with `fastslow tune --modes`"
            )

    def judge(self, hidden_H: torch.Tensor) -> tuple[int, str]:
        """The place of the mode to take, and why."""
        chances, tokens = self.outlook(hidden_H.double().numpy())
        taken = int((chances - self.cost * tokens).argmax())
        parts = zip(self.between, chances, tokens, strict=True)
        each = ", ".join(
            f"{name} {chance:.0%} right for {n:.0f} tokens" for name, chance, n in parts
        )
        return taken, f"{self.between[taken]}: {each}, a token costs {self.cost:.2%}"

    def outlook(self, hidden: F64s) -> tuple[F64s, F64s]:
        """Chances of a right answer and tokens of the answer [..., modes] by hidden states [..., H]."""
        weights, token_weights, bias, base = self._arrays
        chances = 1 / (1 + np.exp(-np.clip(hidden @ weights.T + bias, -500, 500)))
        return chances, np.maximum(hidden @ token_weights.T + base, 1.0)

    @cached_property
    def _arrays(self) -> tuple[F64s, F64s, F64s, F64s]:
        parts = self.weights, self.token_weights, self.bias, self.tokens
        weights, token_weights, bias, base = (np.array(part, dtype=np.float64) for part in parts)
        return weights, token_weights, bias, base
