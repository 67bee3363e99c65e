"""Matrices of whole numbers in groups of inputs: how files pack them, what they mean, and the blocks that kernels take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType, quantize
from torch import Tensor

STEPS = (128, 32)  # inputs that share a scale in the kernels' formats, the cheaper one first


def unpack(words: Tensor, bits: int) -> Tensor:
    """uint8 [..., N * 32 / bits] from int32 [..., N]: the lowest bits of a word come first."""
    every = words.contiguous().view(torch.uint8)
    return every if bits == 8 else torch.stack((every & 15, every >> 4), -1).flatten(-2)


def step_of(inputs: int, group: int) -> int | None:
    """Inputs that share a scale in the kernels' format for groups of this size; None where none fits."""
    return next((step for step in STEPS if not inputs % step and not group % step), None)


@dataclass(frozen=True, slots=True)
class Grouped:
    """weight = scale * (number - zero): uint8 [O, I], float32 [O, G], uint8 [O, G].

    bits: of a number. group: inputs that share a scale; the last group may be shorter. of_input: each input's group,
    int64 [I], where groups are not in order; else None."""

    numbers_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    bits: int
    group: int
    of_input: Tensor | None = None

    def dequantised(self) -> Tensor:
        """float32 [O, I]; exact where scales have 16 bits."""
        inputs = self.numbers_OI.shape[1]
        at = torch.arange(inputs) // self.group if self.of_input is None else self.of_input
        return self.scale_OG[:, at] * (self.numbers_OI.float() - self.zero_OG[:, at].float())

    def blocks(self) -> Tensor:
        """uint8 [O, bytes of a row], the same numbers as kernels/file_u.cpp reads them."""
        outputs, inputs = self.numbers_OI.shape
        step = step_of(inputs, self.group)
        assert step is not None and self.of_input is None
        at = torch.arange(0, inputs, step) // self.group
        scales = self.scale_OG[:, at].contiguous().view(torch.uint8).view(outputs, -1, 4)
        numbers = self.numbers_OI.view(outputs, len(at), step)
        if self.bits == 4:
            halves = numbers.view(outputs, len(at), -1, 2, 16)
            numbers = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)
        return torch.cat((scales, self.zero_OG[:, at, None], numbers), -1).flatten(-2)


def q8_0_rows(weight_OI: Tensor) -> Tensor:
    """uint8 [O, 34 * I / 32]: floats rounded to GGUF's Q8_0."""
    return torch.from_numpy(quantize(weight_OI.numpy(), GGMLQuantizationType.Q8_0))
