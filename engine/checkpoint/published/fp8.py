"""FP8 (E4M3) with a scale for each block of weights, as DeepSeek and Qwen write it, or for a whole matrix."""

from __future__ import annotations

from typing import ClassVar, Literal

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import FLOATS, Expected, Facts
from fastslow.engine.checkpoint.published.reader import (
    FP8,
    INPUTS,
    NEAREST,
    Matrix,
    Raw,
    Size,
    scaled,
)


class Fp8(Params):
    """`weight_scale_inv` is what a block's weights are multiplied by."""

    label: ClassVar[str] = "FP8"
    activation_scheme: Literal["dynamic", "static"] = "dynamic"
    fmt: Literal["e4m3"] = "e4m3"
    weight_block_size: tuple[Size, Size] | None = None

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
