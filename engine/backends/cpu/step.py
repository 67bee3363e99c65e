"""A step's rows in the form that the kernels take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.types import Floats, Ints, Rows

PER_ROW = ("tokens", "positions", "slots", "parents", "groups")


@dataclass(slots=True)
class Tails:
    """Which of the step's own slots each row sees after its request's context, itself the last.

    chains: uint8 [B], whether every row of a request is the child of the one before, so that they share one list.
    """

    slots: Ints
    starts: Ints  # [T]
    lengths: Ints  # [T]
    chains: NDArray[np.uint8]  # [B]

    @classmethod
    def of(cls, rows: Rows) -> Tails:
        """For every row, the slots from its request's context down to it."""
        if len(rows.tokens) == len(rows.starts) - 1:  # a row each, as in plain decoding
            count = len(rows.tokens)
            ones = np.ones(count, dtype=np.int64)
            return cls(rows.slots, rows.starts[:-1], ones, np.ones(count, dtype=np.uint8))
        sizes = rows.starts[1:] - rows.starts[:-1]
        starts = rows.starts[:-1].repeat(sizes)
        places = np.arange(len(rows.tokens)) - starts
        follows = rows.parents == places - 1
        chains = np.ones(len(sizes), dtype=np.uint8)
        if follows.all():
            return cls(rows.slots, starts, places + 1, chains)
        extra, lengths = list[int](), places + 1
        given, parents, first_tail = rows.slots.tolist(), rows.parents.tolist(), len(rows.slots)
        for b in np.unique(np.repeat(np.arange(len(sizes)), sizes)[~follows]).tolist():
            chains[b] = 0
            first, last = int(rows.starts[b]), int(rows.starts[b + 1])
            tails: list[list[int]] = []  # slots from the root to each row
            for row in range(first, last):
                parent = parents[row]
                tails.append([*(tails[parent] if parent >= 0 else ()), given[row]])
                starts[row], lengths[row] = first_tail + len(extra), len(tails[-1])
                extra += tails[-1]
        return cls(np.array(given + extra, dtype=np.int64), starts, lengths, chains)


@dataclass(slots=True)
class KernelStep:
    """A step as the kernels take it, and the memory that they write its results to.

    cos, sin: float32 [T, head_dim / 2]. logits: float32 [M, V], or none where all rows want only their
    best token. features: float32 [S, F]. best: int64 [M].
    """

    rows: Rows
    tails: Tails
    cos: Floats
    sin: Floats
    logits: torch.Tensor
    features: Floats
    best: Ints

    def parts(self, most: int) -> Iterator[KernelStep]:
        """The rows at most `most` at a time; a part's results are put in their places once it has run."""
        rows, tails = self.rows, self.tails
        for first in range(0, len(rows.tokens), most):
            part = slice(first, min(first + most, len(rows.tokens)))
            starts = np.clip(rows.starts, part.start, part.stop) - first
            owners = np.flatnonzero(np.diff(starts))
            picked, looked = (
                np.flatnonzero((wanted >= part.start) & (wanted < part.stop))
                for wanted in (rows.outputs, rows.feature_rows)
            )
            own = KernelStep(
                Rows(
                    **{name: getattr(rows, name)[part] for name in PER_ROW},
                    starts=np.append(starts[owners], part.stop - first),
                    outputs=rows.outputs[picked] - first,
                    only_best=rows.only_best[picked],
                    feature_rows=rows.feature_rows[looked] - first,
                    contexts=tuple(rows.contexts[b] for b in owners),
                    max_len=rows.max_len[owners],
                ),
                Tails(tails.slots, tails.starts[part], tails.lengths[part], tails.chains[owners]),
                self.cos[part],
                self.sin[part],
                self.logits[picked] if len(self.logits) else self.logits,
                self.features[looked] if self.features.size else self.features,
                self.best[picked],
            )
            yield own
            if len(self.logits):
                self.logits[picked] = own.logits
            if self.features.size:
                self.features[looked] = own.features
            self.best[picked] = own.best
