"""The parts of a layer: protocols of mixers and feed-forward parts, and of what reads their weights.

A part is data, a frozen dataclass; its arithmetic on plain torch is a module, which holds loaded weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import State
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.mixers.step import Step
from fastslow.engine.model.norms import Norm, NormWeights
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.tensor_spec import TensorSpec
from fastslow.engine.types import Ints

M_co = TypeVar("M_co", covariant=True)
E_co = TypeVar("E_co", covariant=True)


class WeightReader(Protocol[M_co, E_co]):
    """Reads weights of a checkpoint in a backend's form: M is a matrix with its bias, E one of all routed experts."""

    dtype: torch.dtype

    def plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors below each other."""

    def norm(self, name: str, kind: Norm) -> NormWeights: ...

    def matrix(self, *names: str, bias: bool = False) -> M_co:
        """The matrices `X.weight` below each other, and their biases."""

    def packed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> M_co:
        """A matrix that was read with `plain`."""

    def experts(self, prefixes: Sequence[str], sides: Sequence[str], bias: bool) -> E_co:
        """The matrices `PREFIX.SIDE_proj` of each expert below each other."""


class MixerModule(Protocol):
    """A mixer with its weights, on plain torch."""

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, H] of normed rows [P, H]; reads and writes the state of layer `n`."""


class FfnModule(Protocol):
    """A feed-forward part with its weights, on plain torch."""

    def __call__(self, x_PH: Tensor, wanted: Ints) -> Tensor:
        """[P, H] of normed rows [P, H]. wanted: int64 [P], routed groups or experts that run for each row."""


class Mixer(Protocol):
    """A part that lets rows of a text see each other: attention of any kind, or a recurrence."""

    @property
    def state(self) -> State:
        """The state that the layer keeps of a text."""

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        """The tensors below the layer's prefix, in file order."""

    def load(self, prefix: str, reader: WeightReader[Any, Any]) -> Any:
        """The weights, each matrix in the reader's form."""

    def module(self, weights: Any, ops: Ops) -> MixerModule:
        """The mixer on plain torch."""

    def misfits(self) -> Iterator[str]:
        """Yield a sentence for each field that does not fit the others."""


class FeedForward(Protocol):
    """A part that makes something of each row alone."""

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]: ...

    def load(self, prefix: str, reader: WeightReader[Any, Any]) -> Any: ...

    def module(self, weights: Any, ops: Ops) -> FfnModule: ...

    def misfits(self) -> Iterator[str]: ...
