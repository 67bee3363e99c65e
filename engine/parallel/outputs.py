"""From the last layer's rows, wherever they lie, to logits and features on rank 0."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.model.base import best_tokens
from fastslow.engine.model.ops import wide
from fastslow.engine.model.weights import Weights
from fastslow.engine.parallel.collectives import Collectives
from fastslow.engine.parallel.place import RankPlace
from fastslow.engine.types import Ints, ModelOutput


class Outputs:
    """The head, cut by vocabulary.

    Args:
        place: of this rank.
        weights: its part.
        everyone: all ranks.
    """

    def __init__(self, place: RankPlace, weights: Weights, everyone: Collectives) -> None:
        self._place = place
        self._weights = weights
        self._everyone = everyone

    def __call__(
        self,
        mine_mH: Tensor,
        features_SF: Tensor | None,
        holders: Ints,
        only_best: NDArray[np.bool_],
    ) -> ModelOutput | None:
        """The step's output on rank 0, None on the others.

        mine_mH: last rows of those wanted rows that this rank keeps.
        features_SF: what `features` gave, passed on.
        holders: of all M wanted rows, the rank that keeps each.
        """
        w = self._weights
        if not len(holders):
            return self._nothing(features_SF) if self._place.rank == 0 else None
        most, places = _laid(holders)
        last = w.ops.rms_norm(mine_mH, w.norm, w.config.rms_norm_eps)
        last_MH = self._spread(last, most, torch.from_numpy(places).to(last.device))
        if only_best.all():
            return self._best(last_MH, features_SF)
        logits_MV = self._logits(last_MH)
        parts = self._everyone.gather(logits_MV, "logits gather")
        if parts is None:
            return None
        whole = torch.cat(parts, -1)[:, : w.config.vocab_size].to(wide(w.dtype))
        return ModelOutput(whole, features_SF, best_tokens(whole, only_best))

    def features(self, mine_sF: Tensor, holders: Ints) -> Tensor | None:
        """[S, F] on rank 0, None on the others.

        mine_sF: of those rows to see that this rank keeps.
        holders: of all S, the rank that keeps each.
        """
        if not len(holders):
            return mine_sF if self._place.rank == 0 else None
        most, places = _laid(holders)
        padded = F.pad(mine_sF, (0, 0, 0, most - len(mine_sF)))
        parts = self._everyone.gather(padded, "features gather")
        at = torch.from_numpy(places).to(mine_sF.device)
        return None if parts is None else torch.cat(parts).index_select(0, at)

    def _spread(self, rows_mH: Tensor, most: int, at: Tensor) -> Tensor:
        """[M, H] on every rank, in the order in which they are wanted."""
        padded = F.pad(rows_mH, (0, 0, 0, most - len(rows_mH)))
        return self._everyone.all_gather(padded, "outputs all-gather").index_select(0, at)

    def _logits(self, last_MH: Tensor) -> Tensor:
        """[M, share of V] in the model's dtype; the last share is padded."""
        size = self._place.vocabulary_size
        logits = self._weights.ops.linear(last_MH, self._weights.head)
        return F.pad(logits, (0, size - logits.shape[1]))

    def _best(self, last_MH: Tensor, features: Tensor | None) -> ModelOutput | None:
        """Every rank finds the best of its own vocabulary: three numbers a row instead of V."""
        ids = self._place.vocabulary()
        logits = self._logits(last_MH)[:, : len(ids)]
        top = logits.max(-1)
        found = (top.values, top.indices + ids.start, logits.isfinite().all(-1))
        found_M3 = torch.stack([part.double() for part in found], -1)
        parts = self._everyone.gather(found_M3, "logits gather")
        if parts is None:
            return None
        found_RM3 = torch.stack(parts).cpu().numpy()
        first = found_RM3[:, :, 0].argmax(0)  # the lower ids on a tie
        tokens = np.take_along_axis(found_RM3[:, :, 1], first[None], 0)[0].astype(np.int64)
        best = np.where(found_RM3[:, :, 2].all(0), tokens, -1)
        return ModelOutput(self._no_logits(), features, best)

    def _nothing(self, features_SF: Tensor | None) -> ModelOutput:
        return ModelOutput(self._no_logits(), features_SF, np.empty(0, dtype=np.int64))

    def _no_logits(self) -> Tensor:
        w = self._weights
        return torch.empty(0, w.config.vocab_size, dtype=wide(w.dtype), device=w.device)


def _laid(holders: Ints) -> tuple[int, Ints]:
    """The most rows of a rank, and where each row lies once so many of every rank are gathered."""
    nth = np.empty(len(holders), dtype=np.int64)  # how many before it lie on the same rank
    for rank in np.unique(holders):
        own = holders == rank
        nth[own] = np.arange(own.sum())
    most = int(nth.max()) + 1
    return most, holders * most + nth
