"""Options of the long jobs: a checkpoint is quantised, a draft head is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fastslow.engine.checked import Params

PROMPTS = "prompts, JSON lines with prompt, messages, turns or question"


def field(
    default: Any, description: str, panel: str | None = None, *, names: str = "", **how: Any
) -> Any:
    """A field that is an option, too. panel: of the help. names: of the option, such as "--out -o", after a word such
    as MODEL where it may be given by position, too; without any `--` and the field's name. how: further arguments of
    `Field`."""
    extra: dict[str, Any] = {"panel": panel}
    if names:
        extra["names"] = names.split()
    return Field(default=default, description=description, json_schema_extra=extra, **how)


class QuantizeOptions(Params):
    """Options of quantising a checkpoint; also those of `fastslow quantize`."""

    tokens: int = field(8192, "tokens to calibrate with", ge=1)
    embedding: Literal["auto", "int8", "float"] = field(
        "auto",
        "embedding and head; auto: int8 where floats would keep the checkpoint above 0.52 of its size",
    )
    kv: bool = field(False, "also scales of keys and values in int8 (C8)")


class TaughtOptions(Params):
    """Options of what a draft head is taught: the target's own answers."""

    target: str = field(
        ..., "checkpoint folder, GGUF file or built-in name", names="TARGET --target"
    )
    data: Path = field(..., PROMPTS)
    answer: int = field(192, "most tokens of an answer", ge=3)


class HeadOptions(TaughtOptions):
    """Options of a draft head: its target and its data; also those of `fastslow train-draft`."""

    out: Path = field(..., "the head's file to write", names="--out -o")
    vocabulary: int = field(2048, "tokens that can be drafted, beside a text's own", ge=1)
    batch: int = field(16, "answers made at once", ge=1)

    @property
    def taught(self) -> TaughtOptions:
        """Those alone that answers and features depend on."""
        return TaughtOptions(target=self.target, data=self.data, answer=self.answer)


class TrainConfig(Params):
    """Options of training a draft head."""

    steps: int = field(4, "depth of the trained chain", ge=1)
    fade: float = field(0.8, "the loss of step k counts fade ** (k - 1)")
    rate: float = field(2e-3, "peak learning rate; falls to a tenth along a cosine", ge=0)
    warm_up: int = field(20, "updates until the peak learning rate", ge=1)
    tokens: int = field(1_000_000, "rows to learn from, all epochs", ge=1)
    rows: int = field(2048, "padded rows of a batch", ge=1)
    prompts: float = field(0.8, "share of texts whose prompt the head sees; 0 = never", ge=0, le=1)
    prompt_rows: int = field(1024, "last rows of a prompt that it sees at most")
    moved: float = field(0.5, "share of these prompts that are moved away from the answer")
    decay: float = field(0.01, "weight decay of the matrices")
    sampled: float = field(0.25, "share of the vocabulary that competes in an update", gt=0, le=1)
    seed: int = field(0, "of order and shares")
    products: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "dtype of the matrix products; auto = that of before, at first the faster one here"
    )
