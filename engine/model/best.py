"""Only the best token of a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.types import Ints


def best_tokens(logits_MV: Tensor, only_best: NDArray[np.bool_]) -> Ints:
    """int64 [M]: the first of the likeliest tokens of the marked rows, else -1; see `types.Output`."""
    if not only_best.any():
        return np.full(len(only_best), -1)
    finite = logits_MV.isfinite().all(-1).cpu().numpy()
    best: Ints = np.where(only_best & finite, logits_MV.argmax(-1).cpu().numpy(), -1)
    return best
