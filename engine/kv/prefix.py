"""The prefix cache's index: which page holds the rows of which text."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

EMPTY = b""  # the digest of no text


def chain(digest: bytes, tokens: Sequence[int]) -> bytes:
    """The 16-byte blake2b digest of a text: `digest` of what came before, then a page's tokens."""
    return blake2b(digest + array("q", tokens).tobytes(), digest_size=16).digest()


class Key(NamedTuple):
    """What decides the rows of a page: the root, and all text up to the end of the page.

    The root holds whatever else changes keys and values, such as the mode's routed groups.
    """

    root: Hashable
    digest: bytes


class PrefixIndex:
    """A map of key to page and back; each page also knows the page before it (-1: none)."""

    def __init__(self) -> None:
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._parent_of: dict[int, int] = {}
        self._mode_of: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._key_of

    def __iter__(self) -> Iterator[int]:
        return iter(self._key_of)

    def find(self, key: Key) -> int | None:
        """The page published under this key."""
        return self._page_of.get(key)

    def key(self, page: int) -> Key:
        """The key under which a published page is found."""
        return self._key_of[page]

    def parent(self, page: int) -> int:
        """The page before a published page, -1 for the first of a text."""
        return self._parent_of[page]

    def items(self) -> Iterator[tuple[Key, int]]:
        """All published pages with their keys."""
        return iter(self._page_of.items())

    def match(
        self, tokens: Sequence[int], root: Hashable, page_size: int, most: int
    ) -> tuple[list[int], bytes]:
        """The published pages that `tokens` starts with, and the digest at their end.

        Only full pages within the first `most` tokens are looked at.
        """
        pages: list[int] = []
        digest = EMPTY
        for start in range(0, min(most, len(tokens)) - page_size + 1, page_size):
            longer = chain(digest, tokens[start : start + page_size])
            page = self.find(Key(root, longer))
            if page is None:
                break
            pages.append(page)
            digest = longer
        return pages, digest

    def add(self, key: Key, page: int, parent: int, mode: str = "") -> None:
        """Publish a full page. mode: the name of the one whose request read it, for statistics."""
        self._mode_of[page] = mode
        self._page_of[key] = page
        self._key_of[page] = key
        self._parent_of[page] = parent

    def forget(self, page: int) -> str:
        """The page will hold something else: `match` must not find it any more. Returns the name of the
        mode that it was published with."""
        del self._page_of[self._key_of.pop(page)]
        del self._parent_of[page]
        return self._mode_of.pop(page)

    def clear(self) -> None:
        """Forget all pages."""
        self._page_of.clear()
        self._key_of.clear()
        self._parent_of.clear()
        self._mode_of.clear()
