"""The prefix cache's index: which page holds the rows of which text."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

EMPTY = b""  # the digest of no text


def chain(digest: bytes, tokens: Sequence[int]) -> bytes:
    """The 16-byte blake2b digest of a text: `digest` of what came before, then a page's tokens."""
    return blake2b(digest + array("q", tokens).tobytes(), digest_size=16).digest()


class Key(NamedTuple):
    """Key of a page's rows: all text up to its end, and the root, which holds whatever else changes
    keys and values, such as the mode's routed groups."""

    root: Hashable
    digest: bytes


class PrefixIndex:
    """A map of key to page and back; each page also knows the page before it (-1: none)."""

    def __init__(self) -> None:
        self._page_of: dict[Key, int] = {}
        self._published: dict[int, tuple[Key, int, str]] = {}  # key, page before, mode
        self._for_all: dict[Key, int] = {}  # further keys of pinned pages, by which all find them
        self._after = Counter[int]()  # published pages that follow a page

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._published

    def __iter__(self) -> Iterator[int]:
        return iter(self._published)

    def find(self, key: Key) -> int | None:
        """The page published under this key."""
        return self._page_of.get(key)

    def following(self, page: int, key: Key, for_all: Hashable) -> int | None:
        """The published page with this key, or open to all, that follows `page`; -1: that begins a text."""
        own, other = self.find(key), self._for_all.get(Key(for_all, key.digest))
        ways = (found for found in (own, other) if found is not None)
        return next((found for found in ways if self.parent(found) == page), None)

    def open_to_all(self, pages: Iterable[tuple[Hashable, int]]) -> None:
        """Let requests of all roots find these pinned pages, each with a root that others share."""
        self._for_all = {Key(root, self.key(page).digest): page for root, page in pages}

    def key(self, page: int) -> Key:
        """The key under which a published page is found."""
        return self._published[page][0]

    def parent(self, page: int) -> int:
        """The page before a published page, -1 for the first of a text."""
        return self._published[page][1]

    def goes_on(self, page: int) -> bool:
        """Tell whether a published page follows this one."""
        return self._after[page] > 0

    def items(self) -> Iterator[tuple[Key, int]]:
        """All published pages with their keys."""
        return iter(self._page_of.items())

    def match(
        self,
        tokens: Sequence[int],
        root: Hashable,
        page_size: int,
        most: int,
        for_all: Hashable = None,
    ) -> tuple[list[int], bytes]:
        """The published pages that `tokens` starts with, and the digest at their end.

        Only full pages within the first `most` tokens are looked at. for_all: the root of pages that are
        open to all. A text may begin with those and continue with the root's own.
        """
        texts = tokens[: min(most, len(tokens))], page_size
        own = self._walk(*texts, self._page_of, root, [], EMPTY)
        if not self._for_all:
            return own
        begun = self._walk(*texts, self._for_all, for_all, [], EMPTY)
        both = self._walk(*texts, self._page_of, root, *begun)
        return max(own, both, key=lambda way: len(way[0]))

    def _walk(
        self,
        tokens: Sequence[int],
        page_size: int,
        table: Mapping[Key, int],
        root: Hashable,
        pages: list[int],
        digest: bytes,
    ) -> tuple[list[int], bytes]:
        """Follow a table from some pages, and the digest at their end, as far as it leads."""
        for start in range(len(pages) * page_size, len(tokens) - page_size + 1, page_size):
            longer = chain(digest, tokens[start : start + page_size])
            page = table.get(Key(root, longer))
            if page is None or self.parent(page) != (pages[-1] if pages else -1):
                break
            pages.append(page)
            digest = longer
        return pages, digest

    def add(self, key: Key, page: int, parent: int, mode: str = "") -> None:
        """Publish a full page. mode: the name of the one whose request read it, for statistics."""
        self._page_of[key], self._published[page] = page, (key, parent, mode)
        self._after[parent] += 1

    def forget(self, page: int) -> str:
        """The page will hold something else. Returns the name of the mode that it was published with."""
        key, parent, mode = self._published.pop(page)
        self._after[parent] -= 1
        del self._page_of[key]
        return mode

    def clear(self) -> None:
        """Forget all pages."""
        for table in (self._page_of, self._published, self._for_all, self._after):
            table.clear()
