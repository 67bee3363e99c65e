"""Reading a quantised checkpoint: its matrices as they are, or anything as float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.engine.quant.linear import QuantLinear
from fastslow.engine.quant.scheme import Kind, Scheme

Raw = Callable[[str], "Tensor | None"]


@dataclass(frozen=True, slots=True)
class QuantReader:
    """raw: reads a tensor as the file holds it, None where the file lacks it."""

    raw: Raw
    scheme: Scheme

    def linear(self, name: str) -> QuantLinear | None:
        """The matrix `X.weight` in int8; None where it is float.

        ValueError for scales that are not finite and above 0, and for offsets: int8 here is
        symmetric.
        """
        kind = self.scheme.kind(name)
        if kind is Kind.FLOAT:
            return None
        prefix = name.removesuffix(".weight")
        offset = self.raw(f"{prefix}.weight_offset")
        if offset is not None and bool(offset.float().count_nonzero()):
            raise ValueError(f"tensor {prefix}.weight_offset must be 0: int8 weights are symmetric")
        weight = self._must(name)
        if kind is Kind.DYNAMIC:
            scale = self._must(f"{prefix}.weight_scale").float().flatten()
        else:
            scale = self._dequantising(prefix) / self._must(f"{prefix}.input_scale").float()
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ValueError(f"the scales of tensor {name} must be finite numbers of at least 0")
        return QuantLinear(weight, scale)

    def read(self, name: str) -> Tensor:
        """Any tensor of a float checkpoint, multiplied out where it is quantised."""
        if (matrix := self.linear(name)) is not None:
            return matrix.dequantised()
        found = self.raw(name)
        return self._folded_bias(name) if found is None else found

    def _folded_bias(self, name: str) -> Tensor:
        """What a static matrix adds: its quant_bias, less what the inputs' offset adds to it."""
        prefix = name.removesuffix(".bias")
        weight = self._must(f"{prefix}.weight")
        offset = self._must(f"{prefix}.input_offset").float()
        whole = self._must(f"{prefix}.quant_bias").double() + offset * weight.double().sum(-1)
        return (whole * self._dequantising(prefix)).float()

    def _dequantising(self, prefix: str) -> Tensor:
        """input_scale * weight_scale, float32 [O]; some exports keep its bits in an int64."""
        scale = self._must(f"{prefix}.deq_scale")
        if scale.dtype == torch.int64:
            return scale.to(torch.int32).view(torch.float32)
        return scale.float()

    def _must(self, name: str) -> Tensor:
        found = self.raw(name)
        if found is None:
            raise ValueError(f"the checkpoint lacks tensor {name}")
        return found
