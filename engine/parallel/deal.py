"""A step's rows, dealt to ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastslow.engine.parallel.place import RankPlace
from fastslow.engine.types import Ints, Rows


@dataclass(frozen=True, slots=True)
class Deal:
    """Where the T rows of a step lie among the P = each * ranks rows that all ranks hold.

    Data-parallel ranks follow each other, each with the rows of its own requests and padding behind;
    rank r keeps rows r * each .. (r + 1) * each of the residual stream.

    Attributes:
        each: rows of a rank.
        places: int64 [T], where each row lies.
        tokens, groups: int64 [P]; padding is token 0 and runs no routed expert.
        own: this data-parallel rank's rows, slots counted from its first; None = it has none.
    """

    each: int
    places: Ints
    tokens: Ints
    groups: Ints
    own: Rows | None

    @classmethod
    def of(cls, rows: Rows, place: RankPlace, dp_slots: int) -> Deal:
        """Each row goes to the data-parallel rank that holds its slots, `dp_slots` on each."""
        sizes = np.diff(rows.starts)
        dp_ranks = rows.slots[rows.starts[:-1]] // dp_slots  # every request has a row
        dp_of_row = np.repeat(dp_ranks, sizes)
        counts = np.bincount(dp_ranks, weights=sizes, minlength=place.dp_ranks).astype(np.int64)
        each = -(-int(counts.max()) // place.attention)
        order = np.argsort(dp_of_row, kind="stable")
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = dp_of_row[order] * each * place.attention + nth
        size = each * place.parallel.ranks
        tokens, groups = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        tokens[places], groups[places] = rows.tokens, rows.groups
        own = _only(rows, np.flatnonzero(dp_ranks == place.dp_rank), place.dp_rank * dp_slots)
        return cls(each, places, tokens, groups, own)

    def holders(self, rows: Ints) -> tuple[Ints, Ints]:
        """Of rows of the step: the rank that keeps each, and where among that rank's rows."""
        at = self.places[rows]
        return at // self.each, at % self.each


def _only(rows: Rows, requests: Ints, first_slot: int) -> Rows | None:
    """The rows of some requests, without outputs."""
    if not len(requests):
        return None
    spans = [(int(rows.starts[b]), int(rows.starts[b + 1])) for b in requests]
    kept = np.concatenate([np.arange(a, b) for a, b in spans])
    return Rows(
        tokens=rows.tokens[kept],
        positions=rows.positions[kept],
        slots=rows.slots[kept] - first_slot,
        parents=rows.parents[kept],
        groups=rows.groups[kept],
        starts=np.cumsum([0, *(b - a for a, b in spans)]),
        outputs=np.empty(0, dtype=np.int64),
        only_best=np.empty(0, dtype=np.bool_),
        seen=np.empty(0, dtype=np.int64),
        contexts=tuple(rows.contexts[b] - first_slot for b in requests),
        max_len=rows.max_len[requests],
    )
