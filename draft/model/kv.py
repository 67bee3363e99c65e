"""Where a drafting model keeps keys and values, and a request's text as it reads it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.types import RequestView, Segment


class DraftKV(Protocol):
    """Where a drafting model keeps keys and values."""

    cache: KVCache

    def ready(self, text: DraftText, nodes: int) -> bool:
        """Make room for the draft and set `text.valid`; False = no draft can be made."""

    def wrote(self, text: DraftText) -> None:
        """The rows of `text.valid` tokens stand in the cache now."""

    def release(self, requests: Collection[int]) -> None: ...


class BorrowedKV:
    """The target's own pages: reads its committed KV, scribbles on slots that verification rewrites.

    Args:
        cache: the target's; the scheduler has reserved room for the draft nodes.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def ready(self, text: DraftText, nodes: int) -> bool:
        request = text.request
        # While a prompt is read its KV is not there yet, and reading it here would be done twice.
        # Nor is a first token drafted after a prefix hit: a seed gives the same answer either way.
        answering = len(request.tokens) > request.prompt_length
        pending = len(request.tokens) - request.computed
        text.valid = request.computed
        return answering and pending == 1

    def wrote(self, text: DraftText) -> None:
        """Scratch: forgotten at once."""

    def release(self, requests: Collection[int]) -> None:
        """The target gives its own pages back."""


class OwnKV:
    """Pages of the draft model's own, rewound to what the target accepted.

    Args:
        cache: a cache shaped for the draft model, on its device.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._written: dict[int, list[int]] = {}  # tokens whose rows stand in the cache

    def ready(self, text: DraftText, nodes: int) -> bool:
        number, tokens = text.request.id, text.tokens
        if number not in self._written:
            cached = self.cache.open(number, tokens, None, text.stays)
            self._written[number] = tokens[:cached]
        if not self.cache.reserve(number, len(tokens) + nodes):
            return False
        written = self._written[number]
        text.valid = _common(written, tokens[:-1])
        del written[text.valid :]
        return True

    def wrote(self, text: DraftText) -> None:
        stands = text.tokens[: text.valid]
        self._written[text.request.id] = stands
        self.cache.advance(text.request.id, text.stays, stands)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            if self._written.pop(request, None) is not None:
                self.cache.close(request)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


@dataclass(slots=True)
class DraftText:
    """Tokens of the draft model: the request's text, and behind it a chain that is being drafted.

    Attributes:
        request: whose text it is.
        tokens: its own list, which a chain appends to; at least one.
        stays: how many of them, but for the last, no later text of the request will change.
        groups: routed groups to run; None = all.
        max_len: the longest text this may become, in the draft model's tokens.
        only_best: whether the likeliest token is all that is wanted of the model.
        valid: how many of them have their KV in the draft model's cache.
    """

    request: RequestView
    tokens: list[int]
    stays: int
    groups: int | None
    max_len: int
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
            max_len=self.max_len,
            only_best=self.only_best,
        )

    def rest(self, cache: KVCache) -> Segment:
        """Rows for all that is still to run; the last one's logits are wanted."""
        return self.segment(cache, self.pending, [self.pending - 1])
