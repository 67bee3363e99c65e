"""The head's matrices as drafting multiplies them: int8 where this CPU has the products for it.

A row's result depends on no other row, so a request drafts the same in any batch: each row is scaled
by its own largest value, and two constant inputs with zero weights hold the quantiser, which takes
the range of all rows together, at -1..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

ENGINE = "fbgemm"
PADDING = torch.tensor([1.0, -1.0, 0.0, 0.0])
TINY = 1e-12


def linear_for(matrices: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """(name, x f32 [..., m]) -> f32 [..., n], from matrices [n, m] in any float dtype."""
    if ENGINE not in torch.backends.quantized.supported_engines:
        logger.info("the draft head runs in float32: no int8 products on this CPU")
        kept = {name: matrix.float() for name, matrix in matrices.items()}
        return lambda name, x: F.linear(x, kept[name])
    packed = {name: _pack(matrix.float()) for name, matrix in matrices.items()}

    def product(name: str, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        size = rows.abs().amax(-1, keepdim=True).clamp_min(TINY)
        wide = torch.cat((rows / size, PADDING.expand(len(rows), -1)), -1)
        out: Tensor = torch.ops.quantized.linear_dynamic(wide, packed[name], reduce_range=False)
        return out.mul_(size).unflatten(0, x.shape[:-1])

    return product


def _pack(matrix: Tensor) -> Any:
    scale = matrix.abs().amax(-1).clamp_min(TINY).double() / 127
    wide = F.pad(matrix, (0, len(PADDING)))
    zero = torch.zeros(len(matrix), dtype=torch.int64)
    quantised = torch.quantize_per_channel(wide, scale, zero, 0, torch.qint8)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        return torch.ops.quantized.linear_prepack(quantised, None)
    finally:
        torch.backends.quantized.engine = before
