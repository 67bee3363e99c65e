"""Rounding a matrix so that its products stay right, not its numbers.

GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and what rounding
one of them does to the products is taken back by those that follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastslow.engine.quant.linear import LARGEST, TINY, QuantLinear

DAMPING = 0.01  # of the mean square of a channel
BLOCK = 32  # columns whose corrections are gathered before the rest is touched


def round_matrix(weight_OI: Tensor, gram_II: Tensor | None) -> QuantLinear:
    """int8 with a scale per row, which is that of `QuantLinear.of`.

    gram: float32 [I, I], mean of the products of the inputs' channels; None where no inputs are
    known: the numbers are rounded to their nearest.
    """
    plain = QuantLinear.of(weight_OI)
    if gram_II is None or not (factor := _factor(gram_II)).numel():
        return plain
    left, scale = weight_OI.float().clone(), plain.scale_O
    inverse = torch.where(scale > TINY, 1 / scale, 0.0)
    rounded = torch.empty_like(plain.weight_OI)
    for first in range(0, left.shape[1], BLOCK):
        last = min(first + BLOCK, left.shape[1])
        block, missed = left[:, first:last].T.contiguous(), []
        for i in range(last - first):
            place = first + i
            number = (block[i] * inverse).round_().clamp_(-LARGEST, LARGEST)
            rounded[:, place] = number.to(torch.int8)
            wrong = (block[i] - number * scale) / factor[place, place]
            block[i + 1 :] -= factor[place, place + 1 : last, None] * wrong
            missed.append(wrong)
        left[:, last:] -= torch.stack(missed).T @ factor[first:last, last:]
    return QuantLinear(rounded, scale)


def _factor(gram_II: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; empty where the inputs say nothing."""
    diagonal = gram_II.diagonal()
    size = diagonal.mean()
    if not bool(size > 0) or not bool(size.isfinite()):
        return gram_II.new_empty(0)
    damped = gram_II.double() + torch.eye(len(gram_II), dtype=torch.float64) * size * DAMPING
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor
