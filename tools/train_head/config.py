"""How a draft head is trained."""

from __future__ import annotations

from pydantic import Field

from fastslow.engine.checked import Params


class TrainConfig(Params):
    """How a head is trained."""

    steps: int = Field(default=4, ge=1, description="depth of the trained chain")
    fade: float = Field(default=0.8, description="the loss of step k counts fade ** (k - 1)")
    rate: float = Field(
        default=2e-3, ge=0, description="peak learning rate; falls to a tenth along a cosine"
    )
    warm_up: int = Field(default=20, ge=1, description="updates until the peak learning rate")
    tokens: int = Field(default=1_000_000, ge=1, description="rows to learn from, all epochs")
    rows: int = Field(default=2048, ge=1, description="padded rows of a batch")
    prompts: float = Field(
        default=0.8, ge=0, le=1, description="share of texts whose prompt the head sees; 0 = never"
    )
    prompt_rows: int = Field(default=1024, description="last rows of a prompt that it sees at most")
    moved: float = Field(
        default=0.5, description="share of these prompts that are moved away from the answer"
    )
    stretches: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the long prompts in which a stretch is taught like an answer: for prompts "
        "with text that the target wrote",
    )
    decay: float = Field(default=0.01, description="weight decay of the matrices")
    seed: int = Field(default=0, description="of order and shares")
    products: str = Field(
        default="auto", description="dtype of the matrix products; auto = the faster one here"
    )
