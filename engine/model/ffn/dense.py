"""A dense MLP. Shazeer, arXiv 2002.05202."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from fastslow.engine.model.ops import ACTIVATIONS, Activation, ClampedSwiglu, Linear, Ops
from fastslow.engine.model.parts import WeightReader, too_small
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec, linear
from fastslow.engine.types import Ints

M = TypeVar("M")
OUTS, INS = ShardRule(ShardAxis.ALL, 0), ShardRule(ShardAxis.ALL, 1)
ONCE = ShardRule(ShardAxis.FIRST_OF_ALL)


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(act(gate(x)) * up(x)), `width` numbers inside."""

    width: int
    activation: Activation = "silu"
    bias: bool = False

    def misfits(self) -> Iterator[str]:
        yield from too_small(intermediate_size=self.width)
        if not isinstance(self.activation, ClampedSwiglu) and self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            yield f"activation {self.activation!r} is not one of {known}, and no ClampedSwiglu"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        yield from self.inside(f"{prefix}.mlp", hidden)

    def inside(self, own: str, hidden: int) -> Iterator[TensorSpec]:
        """The tensors below an own prefix."""
        for side in ("gate", "up"):
            yield from linear(f"{own}.{side}_proj", self.width, hidden, self.bias, OUTS)
        yield from linear(f"{own}.down_proj", hidden, self.width, self.bias, INS, ONCE)

    def load(self, prefix: str, reader: WeightReader[M, Any]) -> MlpWeights[M]:
        return self.read(f"{prefix}.mlp", reader)

    def read(self, own: str, reader: WeightReader[M, Any]) -> MlpWeights[M]:
        """The weights below an own prefix."""
        both = f"{own}.gate_proj", f"{own}.up_proj"
        return MlpWeights(
            reader.matrix(*both, bias=self.bias),
            reader.matrix(f"{own}.down_proj", bias=self.bias),
        )

    def module(self, weights: MlpWeights[Linear], ops: Ops) -> MlpModule:
        return MlpModule(self, weights, ops)


@dataclass(slots=True)
class MlpWeights(Generic[M]):
    """gate and up stacked into one matrix [2F, H]; down [H, F]."""

    gate_up: M
    down: M


@dataclass(slots=True)
class MlpModule:
    """A dense MLP on plain torch."""

    mlp: DenseMlp
    weights: MlpWeights[Linear]
    ops: Ops

    def __call__(
        self, x_PH: Tensor, wanted: Ints | None = None, stream_PH: Tensor | None = None
    ) -> Tensor:
        both = self.ops.linear(x_PH, *self.weights.gate_up)
        inner = self.ops.gated(both, self.mlp.activation)
        return self.ops.linear(inner, *self.weights.down)
