"""How the long jobs are done: a checkpoint is quantised or converted, a draft head is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fastslow.engine.checked import Params

PROMPTS = "prompts, JSON lines with prompt, messages, turns or question"


class QuantizeOptions(Params):
    """How a checkpoint is quantised; also options of `fastslow quantize`."""

    tokens: int = Field(default=8192, ge=1, description="tokens to calibrate with")
    least: int = Field(default=32, ge=1, description="tokens that every expert should see")
    most: int = Field(default=65536, ge=1, description="tokens that are looked at for that")
    embedding: Literal["auto", "int8", "float"] = Field(
        default="auto",
        description="embedding and head; auto: int8 where floats would keep the checkpoint above 0.52 of "
        "its size",
    )
    kv: bool = Field(default=False, description="also scales of keys and values in int8 (C8)")


class ConvertOptions(Params):
    """How a dense model is divided; also the options of `fastslow convert`."""

    groups: int = Field(default=8, ge=1, le=256, description="routed groups")
    experts: int = Field(default=8, ge=1, le=256, description="experts a group")
    shared: int | None = Field(
        default=None, description="FFN neurons of the shared expert; default: about 7/12"
    )
    width: int | None = Field(
        default=None,
        description="FFN neurons of a routed expert; default: about 4/5 of its group's pool",
    )
    fast: int = Field(default=2, ge=0, description="groups that the preset fast runs")
    tokens: int = Field(default=24_576, ge=1, description="tokens to calibrate with")
    seed: int = Field(default=0, description="of all random choices")

    def model_post_init(self, _context: object) -> None:
        if self.fast > self.groups:
            raise ValueError(f"fast={self.fast} must be at most groups={self.groups}")


class HeadOptions(Params):
    """What a head is trained for, and from what; also options of `fastslow train-draft`."""

    target: str = Field(description="checkpoint folder, GGUF file or built-in name")
    data: Path = Field(description=PROMPTS)
    out: Path = Field(
        description="the head's file to write", json_schema_extra={"names": ["--out", "-o"]}
    )
    work: Path | None = Field(
        default=None, description="folder for answers, features, checkpoint; default: OUT.work"
    )
    vocabulary: int = Field(default=8192, ge=1, description="tokens that can be drafted")
    answer: int = Field(default=192, ge=3, description="most tokens of an answer")
    batch: int = Field(default=16, ge=1, description="answers made at once")

    @property
    def work_folder(self) -> Path:
        """The folder that keeps what was done."""
        return self.work or self.out.with_suffix(".work")


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
    decay: float = Field(default=0.01, description="weight decay of the matrices")
    seed: int = Field(default=0, description="of order and shares")
    products: str = Field(
        default="auto", description="dtype of the matrix products; auto = the faster one here"
    )
