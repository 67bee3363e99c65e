"""A request's text in the draft model's tokens, and the cache that holds its keys and values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from fastslow.draft.several import on_each
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.rows import Segment
from fastslow.engine.types import RequestView


@dataclass(slots=True)
class DraftText:
    """The request's text, and after it a chain that is being drafted.

    Attributes:
        tokens: of the draft model, a list that only this text has, and a chain appends to; at least one.
        stable: how many tokens the text has without its last one.
        groups: routed groups to run; None = all.
        max_len: the longest text this may become, in the draft model's tokens.
        rope_length: see `ModelConfig.rope_length`.
        only_best: whether the model's likeliest token is enough.
        valid: how many tokens have their KV in the draft model's cache.
        final: how many are for good: their rows may be folded into running states.
    """

    request: RequestView
    tokens: list[int]
    stable: int
    groups: int | None
    max_len: int
    rope_length: int = 0
    only_best: bool = False
    valid: int = 0
    final: int = 0

    @property
    def root(self) -> Hashable:
        """Prefix-cache key: whatever besides the tokens decides the rows, and who may share them."""
        return self.groups, self.rope_length, self.request.memory_key

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.valid

    def segment(self, cache: KVCache, size: int, outputs: Sequence[int] = ()) -> Segment:
        """Rows of the next `size` tokens, valid from now on."""
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
            running=cache.running(self.request.id, range(first, last), self.final),
        )


class DraftKV(ABC):
    """The place of a drafting model's keys and values: `cache`, on its device."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    @abstractmethod
    def prepare(self, text: DraftText, nodes: int) -> int:
        """Make room for a draft of at most so many nodes and set `text.valid`. Returns how many fit; 0 = no draft can
        be made."""

    def written(self, text: DraftText) -> None:  # noqa: B027
        """The rows of `text.valid` tokens are in the cache now."""

    def forget(self) -> None:  # noqa: B027
        """Share no rows of the texts so far."""

    def release(self, requests: Collection[int]) -> None:  # noqa: B027
        """These request ids are gone."""


class BorrowedKV(DraftKV):
    """The target's own pages: reads its committed KV, writes slots that verification writes again, and folds nothing
    into its running states. The scheduler has reserved room for the draft nodes."""

    def prepare(self, text: DraftText, nodes: int) -> int:
        request = text.request
        # While a prompt is read its KV is not ready yet, and computing it now would be done twice.
        # Nor is a first token drafted after a prefix hit: a seed gives the same answer either way.
        answering = len(request.tokens) > request.prompt_length
        text.valid = request.computed
        if not answering or len(request.tokens) - request.computed != 1:
            return 0
        return max(0, min(nodes, self.cache.room(request.id) - len(request.tokens)))


class OwnKV(DraftKV):
    """Pages beside the target's. Before each draft they are rolled back to the longest beginning that they
    share with the text, and the next rows are written over those of rejected tokens."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache)
        self._written: dict[int, list[int]] = {}  # tokens whose rows are in the cache

    def prepare(self, text: DraftText, nodes: int) -> int:
        number, tokens = text.request.id, text.tokens
        nodes = min(nodes, self.cache.unfolded - 1)
        known = _common_prefix(self._written.get(number, ()), tokens[:-1])
        if number in self._written and known < self.cache.valid(number):
            self.release([number])  # it is another text now
        if number not in self._written:
            known = self.cache.open(number, tokens, text.root, text.stable)
            if not text.request.shared:
                self.cache.stop_publishing(number)
            self._written[number] = tokens[:known]
        if not self.cache.reserve(number, len(tokens) + nodes):
            return 0
        text.valid, text.final = known, text.stable
        del self._written[number][known:]
        return nodes

    def written(self, text: DraftText) -> None:
        tokens = text.tokens[: text.valid]
        self._written[text.request.id] = tokens
        self.cache.advance(text.request.id, text.stable, tokens)

    def forget(self) -> None:
        self.cache.clear_prefix()

    def release(self, requests: Collection[int]) -> None:
        held = [n for n in requests if self._written.pop(n, None) is not None]
        on_each(held, self.cache.close)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
