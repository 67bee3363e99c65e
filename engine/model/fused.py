"""Tensors of a file that hold several of the model's, expert by expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.model.expected import Expected

ReadExpert = Callable[[str, int], Tensor]  # of a tensor of the file, what one expert has
Take = Callable[[Sequence[Tensor], slice], Tensor]


@dataclass(frozen=True, slots=True)
class Fused:
    """One layout that a file may have.

    Attributes:
        tensors: of the file; [experts, ...] each.
        parts: the model's tensors in them: an expert's number, and which of its outputs.
        take: a tensor of the model from what an expert has of the file's, and those outputs.
        take_packed: the same as rows of a GGUF file's MXFP4; None where it is not so.
    """

    tensors: Mapping[str, Expected]
    parts: Mapping[str, tuple[int, slice]]
    take: Take
    take_packed: Take | None = None

    def read(self, name: str, expert: ReadExpert) -> Tensor:
        """A tensor of the model, as float."""
        return self._taken(self.take, name, expert)

    def read_packed(self, name: str, expert: ReadExpert) -> Tensor | None:
        """uint8 rows of a matrix; None where the file has floats."""
        return None if self.take_packed is None else self._taken(self.take_packed, name, expert)

    def _taken(self, take: Take, name: str, expert: ReadExpert) -> Tensor:
        number, outputs = self.parts[name]
        return take([expert(tensor, number) for tensor in self.tensors], outputs)
