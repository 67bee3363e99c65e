"""Which dtype a head's training multiplies matrices in."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F
from loguru import logger

SHAPE = (256, 512, 1024)
TRIALS = 3


@cache
def faster_dtype() -> torch.dtype:
    """bfloat16 where its products take no longer than those of float32, else float32.

    Chips without instructions for bfloat16 take several times as long with it, and torch does not
    tell which those are, so both are timed (some tenths of a second, once).
    """
    plain, short = (_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    chosen = torch.bfloat16 if short <= plain else torch.float32
    logger.info("training in {}: products in bfloat16 take {:.1f} x float32", chosen, short / plain)
    return chosen


def _seconds(dtype: torch.dtype) -> float:
    """The least of some products, after one that sets things up."""
    rows, inputs, outputs = SHAPE
    x, w = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    F.linear(x, w)
    times = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        F.linear(x, w)
        times.append(time.perf_counter() - started)
    return min(times)
