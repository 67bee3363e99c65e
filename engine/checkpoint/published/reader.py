"""What a method of quantising must say of itself, and what the methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import FLOATS, Expected, Facts
from fastslow.engine.checkpoint.published.grouped import Grouped, step_of
from fastslow.engine.host.files import shown
from fastslow.engine.model.ops import QuantLinear

Matrix = Grouped | QuantLinear | Tensor
Raw = Mapping[str, Tensor]  # what stands for one matrix, by the ends of the names
Size = Annotated[int, Field(ge=1, le=1 << 20)]
GroupSize = Annotated[int, Field(ge=-1, le=1 << 20)]  # -1: a whole row
FP8 = "F8_E4M3"
NEAREST = "Q8_0"  # for what no kernel format holds
INPUTS = {  # ranges of inputs, which are taken finer here
    name: Expected(((1,), (), (1, 1)), (*FLOATS, "I8", "I32"), optional=True)
    for name in ("input_scale", "input_zero_point")
}
# With these, other numbers are meant than those that are stored.
UNKNOWN = ("is_marlin_format", "adapter", "rotation", "transform_config", "output_activations")


class Reader(Protocol):
    """How a method keeps a matrix. label: its name for people."""

    @property
    def label(self) -> str: ...

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        """What may stand for X.weight, by the ends of names after X; the first is always there."""

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        """The kernel format that holds the matrix, or NEAREST."""

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        """Its numbers; ValueError in one sentence for what they cannot be."""


def form_of(bits: int, inputs: int, group: int) -> str:
    step = step_of(inputs, group)
    return NEAREST if step is None else f"U{bits}_{step}"


def refuse(section: Mapping[str, Any]) -> None:
    """ValueError for a field that changes what numbers mean."""
    if name := next((name for name in UNKNOWN if section.get(name)), None):
        raise ValueError(f"{name} {shown(section[name])} is not supported")


def known(kind: type[Params], section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say how to read; the others are notes of those who made the files."""
    refuse(section)
    return {name: section[name] for name in kind.model_fields if section.get(name) is not None}


def scaled(weight_OI: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """float32 [O, I] of FP8. scale: of the whole, of each output, or of each block [rows, columns]."""
    outputs, inputs = weight_OI.shape
    wide = scale.float()
    if block is not None and wide.dim() == 2:
        wide = wide.repeat_interleave(block[0], 0)[:outputs]
        wide = wide.repeat_interleave(block[1], 1)[:, :inputs]
    elif wide.numel() == outputs:
        wide = wide.reshape(outputs, 1)
    return weight_OI.float() * wide
