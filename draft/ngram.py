"""Prompt lookup: the tokens that came after the last n-gram where it was before in this text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fastslow.draft.base import BaseDrafter
from fastslow.engine.types import RequestView, Tree


@dataclass(slots=True)
class _Index:
    indexed: int = 0  # tokens
    # n-gram -> where its newest ends
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)


class NgramDraft(BaseDrafter):
    """Chosen chains copied from the request's own text (Saxena 2023, "Prompt lookup decoding").

    The longest match wins, and of equally long ones the newest.

    longest, shortest: most and fewest tokens to match, default 4 and 2.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._indexes: dict[int, _Index] = {}

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [Tree.chain(self._lookup(r, n)) for r, n in zip(batch, nodes)]

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._indexes.pop(request, None)

    def _lookup(self, request: RequestView, nodes: int) -> list[int]:
        tokens = request.tokens
        index = self._indexes.setdefault(request.id, _Index())
        # The n-grams that end with the last token are left out: they would find themselves.
        for end in range(index.indexed + 1, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    index.ends[tuple(tokens[end - size : end])] = end
        index.indexed = max(index.indexed, len(tokens) - 1)
        if nodes == 0:
            return []
        for size in self._sizes:
            match = index.ends.get(tuple(tokens[-size:])) if size < len(tokens) else None
            if match is not None:
                return tokens[match : match + nodes]
        return []
