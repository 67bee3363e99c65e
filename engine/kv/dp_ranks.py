"""The KV cache where attention runs several times side by side, each for requests of its own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.types import Ints


class DPRankKVCache(KVCache):
    """A `KVCache` for each home behind the face of one.

    A request gets a home when it is opened: of those with room for all of its text the one that
    knows most of its beginning, then the one with most room. Its pages never leave it.

    The arguments are those of `KVCache`, `shape` the rest of them; `pages` are of all homes together,
    and what does not divide is left out. Slots are counted over all homes, one home's after the other's.
    """

    def __init__(
        self,
        *,
        pages: int,
        page_size: int = 16,
        prefix_caching: bool = True,
        storage: type[KVStorage] = KVStorage,
        **shape: Any,
    ) -> None:
        each = pages // storage.homes
        if each < 1:
            raise ValueError(
                f"pages is {pages}, but must be at least 1 for each of {storage.homes}"
            )
        self.page_size = page_size
        self._each = each * page_size
        self.storage = whole = storage(slots=self._each * storage.homes, **shape)
        self._caches = [
            KVCache(
                pages=each,
                page_size=page_size,
                prefix_caching=prefix_caching,
                storage=lambda first=home * self._each, **_: _RankStorage(whole, first),
                **shape,
            )
            for home in range(storage.homes)
        ]
        self._homes: dict[int, int] = {}

    @property
    def pages(self) -> int:
        return sum(cache.pages for cache in self._caches)

    @property
    def free_pages(self) -> int:
        return sum(cache.free_pages for cache in self._caches)

    @property
    def cached_pages(self) -> int:
        return sum(cache.cached_pages for cache in self._caches)

    @property
    def requests(self) -> int:
        return sum(cache.requests for cache in self._caches)

    def home(self, request: int) -> int:
        return self._homes[request]

    def free_for(self, request: int) -> int:
        return self._of(request).free_pages

    def fits(self, length: int) -> bool:
        """Whether a request of this length could ever fit, with a home all to itself."""
        return self._caches[0].fits(length)

    def open(self, request: int, tokens: Sequence[int], root: Hashable, most: int) -> int:
        if request in self._homes:
            raise ValueError(f"request {request} is already open")

        def worth(home: int) -> tuple[bool, int, int]:
            cache = self._caches[home]
            known = cache.known(tokens, root, most)
            need = self.pages_for(len(tokens) - known)
            return need <= cache.free_pages, known, cache.free_pages

        home = max(range(len(self._caches)), key=worth)
        self._homes[request] = home
        return self._caches[home].open(request, tokens, root, most)

    def reserve(self, request: int, length: int) -> bool:
        return self._of(request).reserve(request, length)

    def room(self, request: int) -> int:
        return self._of(request).room(request)

    def valid(self, request: int) -> int:
        return self._of(request).valid(request)

    def slots(self, request: int, start: int, stop: int) -> Ints:
        """As `KVCache.slots`; a copy."""
        first = self._homes[request] * self._each
        return self._of(request).slots(request, start, stop) + first

    def advance(self, request: int, length: int, tokens: Sequence[int]) -> None:
        self._of(request).advance(request, length, tokens)

    def commit(self, request: int, base: int, path: Sequence[int], tokens: Sequence[int]) -> None:
        self._of(request).commit(request, base, path, tokens)

    def close(self, request: int) -> None:
        self._of(request).close(request)
        del self._homes[request]

    def clear_prefix(self) -> None:
        for cache in self._caches:
            cache.clear_prefix()

    def check_integrity(self) -> None:
        for cache in self._caches:
            cache.check_integrity()

    def _of(self, request: int) -> KVCache:
        return self._caches[self._homes[request]]


class _RankStorage(KVStorage):
    """The rows of one home, slots counted from its first."""

    def __init__(self, whole: KVStorage, first: int) -> None:
        self._whole = whole
        self._first = first

    def move(self, src: Ints, dst: Ints) -> None:
        self._whole.move(src + self._first, dst + self._first)
