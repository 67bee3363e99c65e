"""What several callers fill together, without one of them taking the room of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FairTable(Generic[K, V]):
    """Entries by who made them, their share, and by name. Where it is full, the share that holds most gives up its
    oldest entry. most: size of all entries together."""

    def __init__(self, most: float) -> None:
        self._most, self._size = most, 0
        self._entries: dict[str | None, dict[K, tuple[V, int]]] = {}
        self._sizes: dict[
            str | None, int
        ] = {}  # of shares; the one that added least lately is the first

    def put(self, share: str | None, name: K, value: V, size: int = 1) -> list[V]:
        """Add an entry, or change it: it is the newest. Returns what was given up."""
        self.pop(share, name)
        self._sizes[share] = self._sizes.pop(share, 0) + size
        self._entries.setdefault(share, {})[name] = value, size
        self._size += size
        gone: list[V] = []
        while self._size > self._most:
            gone += self.give_up()
        return gone

    def give_up(self, of: Sequence[str | None] = ()) -> list[V]:
        """Take the oldest entry of the share that holds most, of all or of these; nothing where there is none."""
        shares = [one for one in of or self._sizes if one in self._sizes]
        if not shares:
            return []
        share = max(shares, key=self._sizes.__getitem__)
        name, (value, _) = next(iter(self._entries[share].items()))
        self.pop(share, name)
        return [value]

    def get(self, share: str | None, name: K) -> V | None:
        found = self._entries.get(share, {}).get(name)
        return None if found is None else found[0]

    def find(self, name: K) -> V | None:
        """An entry of any share."""
        return next((entry[name][0] for entry in self._entries.values() if name in entry), None)

    def pop(self, share: str | None, name: K) -> V | None:
        """Take an entry out; None: there is none."""
        entries = self._entries.get(share, {})
        value, size = entries.pop(name, (None, 0))
        self._size -= size
        if share in self._sizes:
            self._sizes[share] -= size
        if not entries:
            self._entries.pop(share, None)
            self._sizes.pop(share, None)
        return value
