"""Matrices in int8 with a scale per output, rows with a scale per token, and their products in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 127
TINY = 1e-36  # below it a scale's inverse overflows: such a row is zeros


@dataclass(frozen=True, slots=True)
class QuantLinear:
    """y = (x @ weight.T) * scale: int8 [O, I] and float32 [O]."""

    weight_OI: Tensor
    scale_O: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Round a float matrix: symmetric, the largest number of each row becomes 127.

        Scales are numbers that bfloat16 holds, so that files can store them in two bytes."""
        weight = weight_OI.float()
        scale = (weight.abs().amax(-1) / LARGEST).bfloat16().float()
        inverse = torch.where(scale > TINY, 1 / scale, 0.0)
        rounded = (weight * inverse[:, None]).round_().clamp_(-LARGEST, LARGEST)
        return cls(rounded.to(torch.int8), scale)

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """The outputs of several matrices below each other, bit for bit."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.weight_OI for part in parts]), torch.cat([p.scale_O for p in parts])
        )

    def dequantised(self) -> Tensor:
        """float32 [O, I]."""
        return self.weight_OI.float() * self.scale_O[:, None]


ReadQuant = Callable[[str], QuantLinear | None]


def no_int8(name: str) -> QuantLinear | None:
    """For checkpoints that hold floats only."""
    return None


def quantise_tokens(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [T, I] and float32 [T]: each row by its largest number, rounded to nearest even.

    A row that is not finite is zeros with a scale that is not finite, so all that comes of it shows."""
    x = x_TI.float()
    most = x.abs().amax(-1)
    scale = torch.where(most > TINY, most / LARGEST, torch.where(most <= TINY, 0.0, most))
    inverse = torch.where((most > TINY) & most.isfinite(), LARGEST / most, 0.0)
    rounded = (x * inverse[:, None]).nan_to_num(0.0, 0.0, 0.0).round_()
    return rounded.to(torch.int8), scale


SCALE = 4  # bytes of a float32


def pack_int8(matrix: QuantLinear) -> Tensor:
    """int8 [O, I + 4]: each row followed by the bytes of its scale. It only serves `int8_product`."""
    scale = matrix.scale_O.float().contiguous()
    return torch.cat([matrix.weight_OI, scale[:, None].view(torch.int8)], 1)


def int8_product(x_TI: Tensor, packed_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x @ weight.T + bias, [T, O], in the dtype of x, which is taken in int8 per token."""
    weight, scale = packed_OI[:, :-SCALE], packed_OI[:, -SCALE:].contiguous().view(torch.float32)
    rows, steps = quantise_tokens(x_TI)
    sums = _whole_product(rows, weight).float() * steps[:, None] * scale.flatten()
    if bias_O is not None:
        sums += bias_O.float()
    return sums.to(x_TI.dtype)


def _whole_product(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    if x_TI.device.type != "cpu":  # float64 holds such sums exactly
        return F.linear(x_TI.double(), weight_OI.double())
    return torch._int_mm(x_TI, weight_OI.T)
