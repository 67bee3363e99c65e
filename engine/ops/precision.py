"""The dtype that sums, rotations, attention and routing run in."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
