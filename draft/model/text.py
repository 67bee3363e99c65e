"""One request's text as the draft model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.types import RequestView, Segment


@dataclass(slots=True)
class Text:
    """Tokens of the draft model: the request's text, and behind it a chain that is being drafted.

    Attributes:
        request: whose text it is.
        tokens: its own list, which a chain appends to; at least one.
        stays: how many of them, but for the last, no later text of the request will change.
        groups: routed groups to run; None = all.
        reach: the longest text this may become, in the draft model's tokens.
        only_best: whether the likeliest token is all that is wanted of the model.
        valid: how many of them have their KV in the draft model's cache.
    """

    request: RequestView
    tokens: list[int]
    stays: int
    groups: int | None
    reach: int
    only_best: bool = False
    valid: int = 0

    @property
    def pending(self) -> int:
        """Tokens that are still to run."""
        return len(self.tokens) - self.valid

    def segment(self, cache: KVCache, size: int, outputs: Sequence[int] = ()) -> Segment:
        """Rows for the next `size` tokens, valid from now on."""
        first, last = self.valid, self.valid + size
        self.valid = last
        return Segment(
            tokens=self.tokens[first:last],
            positions=range(first, last),
            parents=range(-1, size - 1),
            slots=cache.slots(self.request.id, first, last),
            context=cache.slots(self.request.id, 0, first),
            groups=self.groups,
            outputs=outputs,
            reach=self.reach,
            only_best=self.only_best,
        )

    def rest(self, cache: KVCache) -> Segment:
        """Rows for all that is still to run; the last one's logits are wanted."""
        return self.segment(cache, self.pending, [self.pending - 1])
