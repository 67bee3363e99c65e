"""A dense MLP. Shazeer, arXiv 2002.05202."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.model.ops import ACTIVATIONS, Activation, ClampedSwiglu, Linear, Ops
from fastslow.engine.model.parts import WeightReader, too_small
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec, linear
from fastslow.engine.types import Ints

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

    def load(self, prefix: str, reader: WeightReader) -> MlpModule:
        return self.read(f"{prefix}.mlp", reader)

    def read(self, own: str, reader: WeightReader) -> MlpModule:
        """The module whose weights lie below an own prefix."""
        gate_up = reader.matrix(f"{own}.gate_proj", f"{own}.up_proj", bias=self.bias)
        return MlpModule(
            self, reader.ops, gate_up, reader.matrix(f"{own}.down_proj", bias=self.bias)
        )


@dataclass(slots=True)
class MlpModule:
    """A dense MLP on plain torch: gate and up stacked into one matrix [2F, H]; down [H, F]."""

    mlp: DenseMlp
    ops: Ops
    gate_up: Linear
    down: Linear

    def __call__(
        self, x_PH: Tensor, wanted: Ints | None = None, stream_PH: Tensor | None = None
    ) -> Tensor:
        both = self.ops.linear(x_PH, *self.gate_up)
        inner = self.ops.gated(both, self.mlp.activation)
        return self.ops.linear(inner, *self.down)
