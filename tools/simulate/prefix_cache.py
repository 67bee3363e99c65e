"""The prefix cache of one simulated replica: pages of pieces of text, least recently used first to go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class CachedPiece:
    """A piece of text after those before it.

    Attributes:
        among: those that go on from the same text, by name.
        start, tokens: where it begins in its text, and how long it is.
        pages: full pages of it that are held; fewer than it has when some were evicted.
        users: running requests that hold it.
    """

    among: dict[Hashable, CachedPiece]
    name: Hashable
    start: int
    tokens: int
    pages: int = 0
    users: int = 0
    after: dict[Hashable, CachedPiece] = field(default_factory=dict)

    def whole(self, page: int) -> int:
        """Pages that end in it, when nothing of it is evicted."""
        return (self.start + self.tokens) // page - self.start // page


class SimulatedPrefixCache:
    """Pieces of all modes; a mode's own are found by requests of this mode alone.

    As in the engine a request that holds a page holds all before it, and pages without a user are evicted
    least recently used first, from the ends of texts towards their beginnings.

    Args:
        page: tokens of a page.

    Attributes:
        pages: full pages that are held.
        idle: of them, those without a user.
    """

    def __init__(self, page: int) -> None:
        self.pages = 0
        self.idle = 0
        self._page = page
        self._first: dict[Hashable, dict[Hashable, CachedPiece]] = {}  # by root
        self._unused: dict[CachedPiece, None] = {}  # the least recently used first

    def match(
        self, root: Hashable, text: Sequence[tuple[Any, int]], most: int
    ) -> tuple[list[CachedPiece], int]:
        """The cached pieces that a text begins with, and how many of its first `most` tokens they cover."""
        known = self._first.get(root, {})
        found: list[CachedPiece] = []
        end, page = 0, self._page
        for name, tokens in text:
            piece = known.get(name)
            if piece is None:
                break
            found.append(piece)
            held = piece.whole(page) == piece.pages
            reach = piece.start + piece.tokens
            if not held:
                reach = min(reach, (piece.start // page + piece.pages) * page)
            end = min(piece.start + tokens, reach)
            if not held or tokens > piece.tokens:
                break
            known = piece.after
        covered = min(end, most) // page * page
        while found and found[-1].start >= covered:
            found.pop()
        return found, covered

    def use(self, pieces: Sequence[CachedPiece]) -> None:
        """A request holds them."""
        for piece in pieces:
            if not piece.users:
                del self._unused[piece]
                self.idle -= piece.pages
            piece.users += 1

    def let_go(self, pieces: Sequence[CachedPiece]) -> None:
        """A request holds them no longer: they are cached until they are evicted, the last ones first."""
        for piece in reversed(pieces):
            piece.users -= 1
            if not piece.users:
                self._unused[piece] = None
                self.idle += piece.pages

    def publish(
        self, root: Hashable, text: Sequence[tuple[Any, int]], held: list[CachedPiece]
    ) -> None:
        """A request has read a text of which it holds the first pieces; now it holds and shares all of them.

        held: is extended.
        """
        start, page = 0, self._page
        known = self._first.setdefault(root, {})
        for place, (name, tokens) in enumerate(text):
            piece = known.get(name)
            if piece is None:
                piece = known[name] = CachedPiece(known, name, start, tokens)
                self._unused[piece] = None
            piece.tokens = max(piece.tokens, tokens)
            if place >= len(held):
                self.use([piece])
                held.append(piece)
            self.pages += piece.whole(page) - piece.pages
            piece.pages = piece.whole(page)
            known, start = piece.after, start + tokens

    def evict(self, pages: int) -> None:
        """Drop so many pages without a user, or all there are."""
        while pages > 0 and self._unused:
            piece = next(iter(self._unused))
            gone = min(pages, piece.pages)
            piece.pages -= gone
            self.pages -= gone
            self.idle -= gone
            pages -= gone
            if not piece.pages:
                del self._unused[piece]
                del piece.among[piece.name]
