"""Device-specific building blocks of the models."""

from __future__ import annotations

import torch

from fastslow.engine.ops.base import Ops
from fastslow.engine.ops.onednn import OneDnnOps
from fastslow.engine.ops.reference import ReferenceOps


def ops_for(device: torch.device | str) -> Ops:
    """The building blocks for a device. ValueError for a device that this version cannot run."""
    kind = str(device).partition(":")[0]
    if kind == "cpu":
        return OneDnnOps()
    if kind == "cuda":
        return ReferenceOps()
    if kind == "npu":
        raise ValueError(
            "device 'npu' needs the extra (pip install 'fastslow[npu]'), and this version has no "
            "NPU path yet: use 'cpu' or 'cuda'"
        )
    raise ValueError(f"device {str(device)!r} is not one of auto, cpu, cuda, npu")
