"""GPTQ (Frantar et al., arXiv 2210.17323) as AutoGPTQ and GPTQModel write it."""

from __future__ import annotations

from typing import Literal

import torch

from fastslow.engine.checked import Params
from fastslow.engine.checkpoint.fused import Expected, Facts
from fastslow.engine.checkpoint.published.grouped import Grouped, unpack
from fastslow.engine.checkpoint.published.reader import NEAREST, GroupSize, Matrix, Raw, form_of


class Gptq(Params):
    """A word has the numbers of eight or four inputs, or zero points of as many outputs, less 1 in the older format."""

    bits: Literal[4, 8]
    group_size: GroupSize = 128
    desc_act: bool = False
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    format: Literal["gptq", "gptq_v2"] | None = None
    pack_dtype: Literal["int32"] = "int32"

    @property
    def label(self) -> str:
        return f"GPTQ ({self.bits} bits)"

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        groups, each = -(-inputs // self._group(inputs)), 32 // self.bits
        return {
            "qweight": Expected(((inputs // each, outputs),), ("I32",)),
            "qzeros": Expected(((groups, outputs // each),), ("I32",)),
            "scales": Expected(((groups, outputs),)),
            "g_idx": Expected(((inputs,),), ("I32", "I64"), optional=True),
        }

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        if self.desc_act and self._group(inputs) < inputs:
            return NEAREST
        return form_of(self.bits, inputs, self._group(inputs))

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        group, zero = self._group(inputs), unpack(raw["qzeros"], self.bits)
        if (
            self.format or self.checkpoint_format
        ) == "gptq":  # which writes a zero point of 0 as -1
            zero = zero + 1 & (1 << self.bits) - 1
        of_input = raw["g_idx"].long() if "g_idx" in raw else torch.arange(inputs) // group
        if not 0 <= of_input.min() <= of_input.max() < len(zero):
            raise ValueError(f"g_idx must be in 0..{len(zero) - 1}, the groups")
        ordered = torch.equal(of_input, torch.arange(inputs) // group)
        if not (ordered or self.desc_act):
            raise ValueError("g_idx has groups out of order, but desc_act is not true")
        numbers, scale = unpack(raw["qweight"].T, self.bits), raw["scales"].T.float()
        mixed = None if ordered else of_input
        return Grouped(numbers, scale, zero.T.contiguous(), self.bits, group, mixed)

    def _group(self, inputs: int) -> int:
        return self.group_size if self.group_size > 0 else inputs
