"""The rows that a forward runs: those of each request, one after the other.

Letters: B requests, T rows, M rows whose logits are wanted, S rows whose features are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.types import Ints

if TYPE_CHECKING:
    from torch import Tensor

ALL_GROUPS = -1  # in Rows.groups: every routed group runs, or every expert that a router chooses


@dataclass(frozen=True, slots=True)
class RunningRows:
    """A step's work on the running states of one request: rows that are final are folded in for good, in the order
    of the text, each as if it ran alone; the others read the state and change nothing.

    First `folds` of the rows before are folded in, then the segment's first `stable` rows, which are a chain. A segment
    that folds nothing reads the state, then all rows before.
    """

    place: int  # of the request's state
    before: Ints  # ring rows between the state and the segment's first row, in order
    folds: int  # how many of these are folded in; none or all
    stable: int  # how many of the segment's rows are
    at: Ints  # [t] ring rows where the inputs of the segment's rows are kept; those of stable rows need not be
    snapshots: tuple[
        tuple[int, int], ...
    ] = ()  # (n, to): once n rows were folded in, the state is copied to place `to`

    @classmethod
    def chunk(cls, size: int, place: int = 0) -> RunningRows:
        """All rows of a segment that is a text's beginning, folded in at once."""
        return cls(place, _ints(()), 0, size, _ints(range(size)))


@dataclass(slots=True)
class Segment:
    """The rows of one request in one step: a prompt chunk, or the last token, then draft nodes."""

    tokens: Sequence[int]  # [t]
    positions: Sequence[int]  # [t] place in the text; siblings of a tree share one
    parents: Sequence[int]  # [t] row of this segment it follows; -1 follows the context
    slots: Ints  # [t] KV slot that each row writes
    context: Ints  # [c] KV slots of the committed tokens, in order, that every row reads
    groups: int | None = None  # routed groups to run, or without groups experts; None = all
    outputs: Sequence[int] = ()  # rows of this segment whose logits are wanted
    max_len: int = 0  # the longest text this request may become (rotary scaling may depend on it)
    only_best: bool = False  # of the outputs' logits, the likeliest token is enough
    feature_rows: Sequence[int] | None = None  # rows whose features are wanted; None = the outputs
    running: RunningRows | None = (
        None  # what becomes of the request's running states; None: the model has none
    )


@dataclass(slots=True)
class Rows:
    """Rows that the model runs: every segment of the step, one after the other.

    Row t of request b reads the slots `contexts[b]`, its ancestors by `parents`, and itself.
    """

    tokens: Ints  # [T]
    positions: Ints  # [T]
    slots: Ints  # [T]
    parents: Ints  # [T] row index inside the request's own segment, or -1
    groups: Ints  # [T] routed groups (without groups: experts) to run for this row, or ALL_GROUPS
    starts: Ints  # [B+1] request b owns rows starts[b] : starts[b+1]
    outputs: Ints  # [M] rows whose logits are wanted
    only_best: NDArray[np.bool_]  # [M] of these, the likeliest token is enough
    feature_rows: Ints  # [S] rows whose features are wanted, if any layer's are
    contexts: tuple[Ints, ...]  # per request: KV slots of its committed tokens
    max_len: Ints  # [B]
    running: tuple[RunningRows, ...] | None = (
        None  # per request; None: the model has no running states
    )
    inputs: Tensor | None = None  # [T, H] hidden states that rows of an MTP layer read

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Rows:
        """Lay the segments of a step one after the other."""
        # literals: list[int]() takes ten times as long, and this runs in every step
        numbers: list[list[int]] = [[], [], [], [], [], [], []]
        tokens, positions, parents, groups, outputs, seen, max_len = numbers
        starts = [0]
        slots: list[Ints] = []
        contexts: list[Ints] = []
        only_best: list[bool] = []
        running: list[RunningRows] = []
        for s in segments:
            first, size = starts[-1], len(s.tokens)
            starts.append(first + size)
            tokens += s.tokens
            positions += s.positions
            parents += s.parents
            groups += [ALL_GROUPS if s.groups is None else s.groups] * size
            outputs += [first + i for i in s.outputs]
            only_best += [s.only_best] * len(s.outputs)
            seen += [first + i for i in (s.outputs if s.feature_rows is None else s.feature_rows)]
            slots.append(s.slots)
            contexts.append(s.context)
            max_len.append(s.max_len)
            if s.running is not None:
                running.append(s.running)
        assert len(running) in (0, len(segments)), "some requests have no running states"
        each = np.array(numbers[:4], dtype=np.int64)
        return cls(
            tokens=each[0],
            positions=each[1],
            slots=np.concatenate(slots) if segments else _ints(()),
            parents=each[2],
            groups=each[3],
            starts=_ints(starts),
            outputs=_ints(outputs),
            only_best=np.array(only_best, dtype=np.bool_),
            feature_rows=_ints(seen),
            contexts=tuple(contexts),
            max_len=_ints(max_len),
            running=tuple(running) or None,
        )

    def each_running(self) -> Iterator[tuple[RunningRows, slice, Ints]]:
        """Each request's work on its running states, the rows here that are its own, and their parents."""
        assert self.running is not None
        for r, running in enumerate(self.running):
            own = slice(int(self.starts[r]), int(self.starts[r + 1]))
            yield running, own, self.parents[own]


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)
