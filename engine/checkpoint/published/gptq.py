"""GPTQ (Frantar et al., arXiv 2210.17323) as AutoGPTQ and GPTQModel write it."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fastslow.engine.checkpoint.fused import Expected, Facts
from fastslow.engine.checkpoint.published.grouped import Grouped, unpack
from fastslow.engine.checkpoint.published.reader import NEAREST, InGroups, Matrix, Raw, form_of


class Gptq(InGroups):
    """A word has the numbers of eight or four inputs, or zero points of as many outputs, less 1 in the older format.
    desc_act: groups may be out of order, but not with static_groups."""

    label: ClassVar[str] = "GPTQ"
    bits: Literal[4, 8]
    desc_act: bool = False
    static_groups: bool = False
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    format: Literal["gptq", "gptq_v2"] | None = None

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        groups, each = -(-inputs // self.group(inputs)), 32 // self.bits
        return {
            "qweight": Expected(((inputs // each, outputs),), ("I32",)),
            "qzeros": Expected(((groups, outputs // each),), ("I32",)),
            "scales": Expected(((groups, outputs),)),
            "g_idx": Expected(((inputs,),), ("I32", "I64"), optional=True),
        }

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        mixed = self.desc_act and not self.static_groups and self.group_size > 0
        return NEAREST if mixed else form_of(self.bits, inputs, self.group(inputs))

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        group, zero = self.group(inputs), unpack(raw["qzeros"], self.bits)
        if (self.format or self.checkpoint_format) == "gptq":
            zero = zero + 1 & (1 << self.bits) - 1  # it has -1 for a zero point of 0
        usual = torch.arange(inputs) // group
        of_input = raw["g_idx"].long() if "g_idx" in raw else usual
        if not 0 <= of_input.min() <= of_input.max() < len(zero):
            raise ValueError(f"g_idx must be in 0..{len(zero) - 1}, the groups")
        mixed = not torch.equal(of_input, usual)
        if mixed and self.form({}, outputs, inputs) != NEAREST:
            raise ValueError("g_idx has groups out of order, but desc_act does not say so")
        numbers, scale = unpack(raw["qweight"].T, self.bits), raw["scales"].T.float()
        zero, order = zero.T.contiguous(), of_input if mixed else None
        return Grouped(numbers, scale, zero, self.bits, group, order)
