"""Collectives of one group of ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastslow.engine.model.ops import wide

# torch renamed it
_into_one = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Collectives:
    """Ranks that share rows; group None: this rank alone."""

    def __init__(self, group: dist.ProcessGroup | None, size: int) -> None:
        self._group = group
        self.size = size

    def all_gather(self, x_nH: Tensor) -> Tensor:
        """[size * n, H]: every rank's rows, in the order of the ranks."""
        if self.size == 1:
            return x_nH
        whole = x_nH.new_empty(self.size * len(x_nH), *x_nH.shape[1:])
        _into_one(whole, x_nH.contiguous(), group=self._group)
        return whole

    def reduce_scatter(self, partial_PH: Tensor) -> Tensor:
        """[P / size, H]: this rank's rows of the sum over all ranks.

        The parts are exchanged as they are and added here, in the order of the ranks and in float32 (float64 for
        float64): the bits of a row depend neither on a library's reduction nor on the rows beside it."""
        if self.size == 1:
            return partial_PH
        parts = torch.empty_like(partial_PH)
        dist.all_to_all_single(parts, partial_PH.contiguous(), group=self._group)
        parts_RnH = parts.view(self.size, -1, *partial_PH.shape[1:])
        total = parts_RnH[0].to(wide(partial_PH.dtype))
        for part_nH in parts_RnH[1:]:
            total = total + part_nH
        return total.to(partial_PH.dtype)

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """Every rank's tensor, all of one shape, on rank 0; None on the others."""
        if self.size == 1:
            return [x]
        if dist.get_rank():
            dist.gather(x.contiguous(), group=self._group)
            return None
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.gather(x.contiguous(), parts, group=self._group)
        return parts
