"""A step's rows in the form that the kernels take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.backends.cpu.running import cut
from fastslow.engine.rows import Rows, RunningRows
from fastslow.engine.types import Floats, Ints

PER_ROW = ("tokens", "positions", "slots", "groups")


@dataclass(slots=True)
class Tails:
    """Slots of the step itself that each row sees after its request's context, its own the last.

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
            ones = np.array([1] * count, dtype=np.int64)
            return cls(rows.slots, rows.starts[:-1], ones, ones.astype(np.uint8))
        given, parents = rows.slots.tolist(), rows.parents.tolist()
        starts, lengths, chains, extra = list[int](), list[int](), list[bool](), list[int]()
        for first, last in itertools.pairwise(rows.starts.tolist()):
            own = parents[first:last]
            chains.append(own == list(range(-1, last - first - 1)))
            if chains[-1]:
                starts += [first] * (last - first)
                lengths += range(1, last - first + 1)
                continue
            tails: list[list[int]] = []  # slots from the root to each row
            for slot, parent in zip(given[first:last], own):
                tails.append([*(tails[parent] if parent >= 0 else ()), slot])
                starts.append(len(given) + len(extra))
                lengths.append(len(tails[-1]))
                extra += tails[-1]
        slots = np.array(given + extra, dtype=np.int64) if extra else rows.slots
        begins, sizes = np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)
        return cls(slots, begins, sizes, np.array(chains, dtype=np.uint8))


@dataclass(slots=True)
class KernelStep:
    """A step as the kernels take it, and the memory that they write its results to.

    cos, sin: float32 [T, D / 2]. logits: float32 [M, V]; None where all rows want only their
    best token. features: float32 [S, F]. best: int64 [M].
    """

    rows: Rows
    tails: Tails
    cos: Floats
    sin: Floats
    logits: torch.Tensor | None
    features: Floats
    best: Ints

    def parts(self, most: int) -> Iterator[KernelStep]:
        """The rows at most `most` at a time; a part's results are put in their places once it has run."""
        rows, tails = self.rows, self.tails
        for part in self._slices(most):
            first = part.start
            starts = np.clip(rows.starts, part.start, part.stop) - first
            owners = np.flatnonzero(np.diff(starts))
            picked, looked = (
                np.flatnonzero((wanted >= part.start) & (wanted < part.stop))
                for wanted in (rows.outputs, rows.feature_rows)
            )
            began = np.maximum(first - rows.starts[owners], 0)  # rows of each that ran before
            parents = rows.parents[part] - np.repeat(began, np.diff(starts)[owners])
            own = KernelStep(
                Rows(
                    **{name: getattr(rows, name)[part] for name in PER_ROW},
                    parents=np.maximum(parents, -1),
                    starts=np.append(starts[owners], part.stop - first),
                    outputs=rows.outputs[picked] - first,
                    only_best=rows.only_best[picked],
                    feature_rows=rows.feature_rows[looked] - first,
                    contexts=tuple(rows.contexts[b] for b in owners),
                    max_len=rows.max_len[owners],
                    running=self._running(part, owners),
                    inputs=None if rows.inputs is None else rows.inputs[part],
                ),
                Tails(tails.slots, tails.starts[part], tails.lengths[part], tails.chains[owners]),
                self.cos[part],
                self.sin[part],
                None if self.logits is None else self.logits[picked],
                self.features[looked] if self.features.size else self.features,
                self.best[picked],
            )
            yield own
            if self.logits is not None and own.logits is not None:
                self.logits[picked] = own.logits
            if self.features.size:
                self.features[looked] = own.features
            self.best[picked] = own.best

    def _slices(self, most: int) -> Iterator[slice]:
        """Parts of the rows. Drafted rows beside a running state stay together."""
        rows, first, count = self.rows, 0, len(self.rows.tokens)
        while first < count:
            stop = min(first + most, count)
            if rows.running is not None and stop < count:
                b = int(np.searchsorted(rows.starts, stop, "right")) - 1  # whose rows would be cut
                final = int(rows.starts[b]) + rows.running[b].stable
                if stop > final:
                    stop = final if final > first else int(rows.starts[b + 1])
            yield slice(first, stop)
            first = stop

    def _running(self, part: slice, owners: Ints) -> tuple[RunningRows, ...] | None:
        rows = self.rows
        if rows.running is None:
            return None
        starts = rows.starts[owners].tolist()
        return tuple(
            cut(rows.running[b], max(part.start - start, 0), part.stop - start)
            for b, start in zip(owners.tolist(), starts)
        )
