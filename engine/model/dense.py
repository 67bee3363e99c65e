"""The gated MLP of a dense layer, and of a shared expert."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.ops.base import Ops


@dataclass(slots=True)
class Mlp:
    """down(silu(gate(x)) * up(x)), gate and up stacked into one matrix [2F, H].

    SwiGLU: Shazeer, arXiv 2002.05202.
    """

    ops: Ops
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    def __call__(self, x_PH: Tensor) -> Tensor:
        """[P, H] in the dtype of x."""
        inner = self.ops.silu_product(self.ops.linear(x_PH, self.gate_up, self.gate_up_bias))
        return self.ops.linear(inner, self.down, self.down_bias)
