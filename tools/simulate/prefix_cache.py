"""The prefix cache of one simulated replica: pages of pieces of text, least recently used first to go."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Text = Sequence[tuple[Hashable, int]]  # pieces: name, tokens


@dataclass(slots=True, eq=False)
class CachedPiece:
    """A piece of text after those before it.

    Attributes:
        among: those that continue the same text, by name.
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
    """Pieces by root: only requests of one root (mode and memory key) share them.

    As in the engine a request that holds a page holds all before it, and pages without a user are evicted
    least recently used first, from the ends of texts towards their beginnings.

    Args:
        page: tokens of a page.

    Attributes:
        pages, idle: full pages that are held; of them, those without a user.
    """

    def __init__(self, page: int) -> None:
        self.pages = 0
        self.idle = 0
        self._page = page
        self._first: dict[Hashable, dict[Hashable, CachedPiece]] = {}
        self._unused: dict[CachedPiece, None] = {}  # the least recently used first

    def match(self, root: Hashable, text: Text, most: int) -> tuple[list[CachedPiece], int]:
        """The cached pieces that a text begins with, and how many of its first `most` tokens they cover."""
        known = self._first.get(root, {})
        found: list[CachedPiece] = []
        end, page = 0, self._page
        for name, tokens in text:
            piece = known.get(name)
            if piece is None:
                break
            found.append(piece)
            held = (piece.start // page + piece.pages) * page  # up to here
            evicted = piece.pages < piece.whole(page)
            end = piece.start + min(tokens, piece.tokens)
            if evicted:
                end = min(end, held)
            if evicted or tokens > piece.tokens:
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

    def let_go(self, pieces: list[CachedPiece]) -> None:
        """A request holds them no longer: they stay until they are evicted, the last ones first."""
        while pieces:
            piece = pieces.pop()
            piece.users -= 1
            if not piece.users:
                self._unused[piece] = None
                self.idle += piece.pages

    def publish(self, root: Hashable, text: Text, held: list[CachedPiece]) -> None:
        """A request has read a text of which it holds the first pieces; now it holds and shares all of them.

        held: is extended.
        """
        start, page = 0, self._page
        known = self._first.setdefault(root, {})
        for place, (name, tokens) in enumerate(text):
            piece = known.get(name)
            if piece is None:
                piece = known[name] = CachedPiece(known, name, start, 0)
                self._unused[piece] = None
            if place >= len(held):
                self.use([piece])
                held.append(piece)
            piece.tokens = max(piece.tokens, tokens)
            self.pages += piece.whole(page) - piece.pages
            piece.pages = piece.whole(page)
            known, start = piece.after, start + tokens

    def evict(self, pages: int) -> None:
        """Drop pages without a user, or all there are."""
        while pages > 0 and self._unused:
            piece = next(iter(self._unused))
            gone = min(pages, piece.pages)
            piece.pages -= gone
            self.pages -= gone
            self.idle -= gone
            pages -= gone
            if not piece.pages:
                del self._unused[piece], piece.among[piece.name]
