"""A table that several callers fill together, and none of them takes the room of the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FairTable(Generic[K, V]):
    """Entries by who made them, their share, and by name. Where it is full, the share that holds most gives up its
    oldest entry; of equal ones that share which added least lately. most: size of all entries together."""

    def __init__(self, most: float) -> None:
        self._most, self._size = most, 0
        self._entries: dict[str | None, dict[K, tuple[V, int]]] = {}

    def put(self, share: str | None, name: K, value: V, size: int = 1) -> list[V]:
        """Add an entry, or change it: it is the newest. Returns what was given up."""
        self.pop(share, name)
        self._entries[share] = entries = self._entries.pop(share, {})
        entries[name] = value, size
        self._size += size
        gone: list[V] = []
        while self._size > self._most:
            gone += self.give_up()
        return gone

    def give_up(self, among: Collection[str | None] = ()) -> list[V]:
        """Take the oldest entry of the share that holds most, among these or, with (), of all; [] where none does."""
        shares = [share for share in among or self._entries if share in self._entries]
        if not shares:
            return []
        share = max(shares, key=lambda one: sum(size for _, size in self._entries[one].values()))
        name, (value, _) = next(iter(self._entries[share].items()))
        self.pop(share, name)
        return [value]

    def get(self, share: str | None, name: K) -> V | None:
        return self._entries.get(share, {}).get(name, (None, 0))[0]

    def find(self, name: K) -> V | None:
        """An entry of any share."""
        return next((each[name][0] for each in self._entries.values() if name in each), None)

    def pop(self, share: str | None, name: K) -> V | None:
        """Take an entry out; None: there is none."""
        entries = self._entries.get(share, {})
        value, size = entries.pop(name, (None, 0))
        self._size -= size
        if not entries:
            self._entries.pop(share, None)
        return value
