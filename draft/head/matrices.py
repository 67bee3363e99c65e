"""The head's matrices as drafting multiplies them: int8 where torch has the products for it.

A row's result depends on no other row, so a request drafts the same in any batch: each row is scaled
by its own largest value, and whole numbers add up alike in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

STEPS = 127  # of int8, which stand for the largest weight of a row
MIDDLE = 128  # of uint8, which stands for 0
MIDDLE_OF_7_BITS = 64
TINY = 1e-12
OPS = torch.ops.onednn


class Packed(NamedTuple):
    """A matrix [n, m] in int8, in oneDNN's own order."""

    weight: Tensor
    scale: Tensor  # f32 [n]
    zero: Tensor  # int32 [n]


def linear_for(matrices: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """(name, x f32 [..., m]) -> f32 [..., n], from matrices [n, m] in any float dtype."""
    if not (torch._C._has_mkldnn and hasattr(OPS, "qlinear_pointwise")):
        logger.info("the draft head runs in float32: this torch has no int8 products")
        kept = {name: matrix.float() for name, matrix in matrices.items()}
        return lambda name, x: F.linear(x, kept[name])
    packed = {name: _pack(matrix.float()) for name, matrix in matrices.items()}
    middle = MIDDLE_OF_7_BITS if overflows() else MIDDLE

    def product(name: str, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        size = rows.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        levels = (rows * ((middle - 1) / size)).round_().add_(middle).to(torch.uint8)
        out = _multiply(levels, 1 / (middle - 1), middle, packed[name])
        return out.mul_(size).view(*x.shape[:-1], -1)

    return product


@cache
def overflows() -> bool:
    """Whether these products add pairs in 16 bits, which two large inputs overflow: oneDNN does so on
    chips without dot products of bytes (its documentation: "Nuances of int8 computations")."""
    largest = torch.full((1, 64), 255, dtype=torch.uint8)
    out = _multiply(largest, 1.0, MIDDLE, _pack(torch.ones(16, 64)))
    found = abs(float(out[0, 0]) - 64 * (255 - MIDDLE)) > 1
    if found:
        logger.info("the draft head takes inputs of 7 bits: int8 products overflow on this chip")
    return found


def _multiply(levels: Tensor, step: float, middle: int, m: Packed) -> Tensor:
    """Inputs `step` * (levels - middle), uint8 [t, m], times a matrix: f32 [t, n]."""
    out: Tensor = OPS.qlinear_pointwise(
        levels, step, middle, m.weight, m.scale, m.zero,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return out


def _pack(matrix: Tensor) -> Packed:
    scale = matrix.abs().amax(-1).clamp_min(TINY) / STEPS
    levels = (matrix / scale[:, None]).round().to(torch.int8)
    return Packed(
        OPS.qlinear_prepack(levels, None), scale, torch.zeros(len(matrix), dtype=torch.int32)
    )
