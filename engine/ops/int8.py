"""Products of int8 in plain torch: whole sums, so that no order of adding can change a bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.quant.linear import QuantLinear, quantise_tokens

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
