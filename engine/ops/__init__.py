"""Device-specific building blocks of the models."""

from __future__ import annotations

import torch

from fastslow.engine.ops.base import Ops
from fastslow.engine.ops.cpu import CpuOps
from fastslow.engine.ops.reference import ReferenceOps


def ops_for(device: torch.device) -> Ops:
    """The building blocks for a device. ValueError for a device that this version cannot run."""
    if device.type == "cpu":
        return CpuOps()
    if device.type == "cuda":
        return ReferenceOps()
    if device.type == "npu":
        raise ValueError(
            "device 'npu' needs the extra (pip install 'fastslow[npu]'), and this version has no "
            "NPU path yet: use 'cpu' or 'cuda'"
        )
    raise ValueError(f"device {device.type!r} is not one of the known cpu, cuda, npu")
