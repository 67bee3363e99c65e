"""FP8 (E4M3) with a scale for each block of weights, as DeepSeek-V3 has them, or for a whole matrix."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import FLOATS, Expected, Facts
from fastslow.engine.checkpoint.published.reader import NEAREST, Matrix, Raw

FP8 = "F8_E4M3"
Size = Annotated[int, Field(ge=1, le=1 << 20)]
Block = tuple[Size, Size]
INPUTS = {  # ranges of inputs, which are taken finer here
    name: Expected(((1,), (), (1, 1)), (*FLOATS, "I8", "I32"), optional=True)
    for name in ("input_scale", "input_zero_point")
}


class Fp8(Params):
    """`weight_scale_inv` is what a block's weights are multiplied by."""

    label: ClassVar[str] = "FP8"
    fmt: Literal["e4m3"] = "e4m3"
    weight_block_size: Block | None = None

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        weight = {"weight": Expected(((outputs, inputs),), (FP8,))}
        if self.weight_block_size is None:
            return {"weight_scale": Expected(((1,), (), (outputs, 1)))} | weight | INPUTS
        rows, columns = self.weight_block_size
        blocks = (-(-outputs // rows), -(-inputs // columns))
        return {"weight_scale_inv": Expected((blocks,), (*FLOATS, "F8_E8M0"))} | weight | INPUTS

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        return NEAREST

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        scale = raw["weight_scale" if self.weight_block_size is None else "weight_scale_inv"]
        return scaled(raw["weight"], scale, self.weight_block_size)


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
