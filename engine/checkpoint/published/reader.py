"""Protocol of a method of quantising, and what the methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import Expected, Facts
from fastslow.engine.checkpoint.published.grouped import Grouped, step_of
from fastslow.engine.host.files import shown
from fastslow.engine.model.ops import QuantLinear

Matrix = Grouped | QuantLinear | Tensor
Raw = Mapping[str, Tensor]  # what stands for one matrix, by the ends of the names
NEAREST = "Q8_0"  # for what no kernel format holds
# With these, other numbers are meant than those that are stored.
UNKNOWN = ("is_marlin_format", "adapter", "rotation", "transform_config", "output_activations")


class InGroups(Params):
    """group_size: inputs that share a scale and a zero point; -1: all."""

    group_size: int = Field(128, ge=-1, le=1 << 20)

    def group(self, inputs: int) -> int:
        return self.group_size if self.group_size > 0 else inputs


class Reader(Protocol):
    """Reader of one method's matrices. label: its name for people. tensors: what may stand for X.weight, by the ends of
    names after X. form: the kernel format that holds the matrix, or NEAREST. matrix: its numbers; ValueError in one
    sentence for what they cannot be."""

    label: ClassVar[str]

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]: ...
    def form(self, facts: Facts, outputs: int, inputs: int) -> str: ...
    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix: ...


def form_of(bits: int, inputs: int, group: int) -> str:
    step = step_of(inputs, group)
    return NEAREST if step is None else f"U{bits}_{step}"


def refuse(section: Mapping[str, Any]) -> None:
    """ValueError for a field of UNKNOWN."""
    if name := next(filter(section.get, UNKNOWN), None):
        raise ValueError(f"{name} {shown(section[name])} is not supported")


def known(kind: type[Params], section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say how to read; the others are notes of those who made the files."""
    refuse(section)
    return {name: section[name] for name in kind.model_fields if section.get(name) is not None}
