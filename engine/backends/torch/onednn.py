"""The building blocks on a CPU with weights in oneDNN's layout, which is about twice as fast to read."""

from __future__ import annotations

from functools import cache

import torch
from loguru import logger
from torch import Tensor

from fastslow.engine.model.ops import Linear, Ops


@cache
def packable(dtype: torch.dtype) -> bool:
    """Tell whether this machine's oneDNN packs weights of this dtype."""
    ready = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # absent in builds without oneDNN
    if ready and dtype == torch.bfloat16:
        ready = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    ready = ready and dtype in (torch.float32, torch.bfloat16)
    if not ready:
        logger.info("oneDNN cannot pack {} weights, plain matrix products run instead", dtype)
    return ready


class OneDnnOps(Ops):
    """The reference, with products by packed weights (float32, and bfloat16 where oneDNN has it)."""

    def pack(self, weight_OI: Tensor) -> Tensor:
        """The weight in oneDNN's layout: opaque, it only serves `linear` and `experts`."""
        if not packable(weight_OI.dtype):
            return weight_OI
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, self.rows)
        return packed

    def _product(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        weight_OI, bias_O, _ = matrix
        if not weight_OI.is_mkldnn:
            return super()._product(x_TI, matrix)
        product = torch.ops.mkldnn._linear_pointwise
        if x_TI.dtype != torch.bfloat16:
            out: Tensor = product(x_TI, weight_OI, bias_O, "none", [], "")
            return out
        return self._in_parts(x_TI, lambda part: product(part, weight_OI, bias_O, "none", [], ""))
