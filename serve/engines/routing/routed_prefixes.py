"""Index of the prefixes that each replica has read: of what was routed, not of what replicas really hold."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random

from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings


@dataclass(slots=True)
class _Held:
    """Text that one replica has read: the characters of each block, the least recently used one first."""

    room: float = math.inf  # characters
    size: int = 0  # likewise, of all blocks
    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)


class RoutedPrefixes:
    """Chained hashes of blocks of characters, each with the replicas that have read it. A block's hash covers all text
    before it and whose KV it is: KV is shared within one mode and memory key only. A replica that has a block has all
    those before it, since the deepest ones are dropped first. So the deepest known block of a prompt tells at once who
    has read most. Hashes are Python's own: keyed anew in each process, so that nobody can make prompts that collide,
    and as fast as memory. They need not agree between routers."""

    def __init__(self, settings: RoutingSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._ends = _block_ends(settings)
        self._replicas: dict[str, _Held] = {}
        self._readers: dict[int, set[str]] = {}  # by block

    def __len__(self) -> int:
        """Blocks, counted for each replica that has them."""
        return sum(len(held.blocks) for held in self._replicas.values())

    def match(self, request: RoutedRequest, most: int) -> dict[str, int]:
        """At most `most` replicas that have read most of the prompt, the best first; and how many of its
        characters each has read."""
        found: dict[str, int] = {}
        seen: set[str] = set()
        for block, _, end in reversed(self._blocks(request)):
            readers = self._readers.get(block, seen)
            if len(readers) > len(seen):  # who has read this far has read all before it, too
                new = sorted(readers - seen)
                seen = readers
                some = self._random.sample(new, min(len(new), most - len(found)))
                found |= dict.fromkeys(some, end)
                if len(found) >= most:
                    break
        return found

    def read_by(self, request: RoutedRequest, id: str) -> int:
        """Count the characters of the prompt that a replica has read."""
        held = self._replicas.get(id, _Held())
        return max((end for one, _, end in self._blocks(request) if one in held.blocks), default=0)

    def add(self, request: RoutedRequest, id: str) -> None:
        """The prompt goes to a replica, which reads it."""
        held = self._replicas.get(id) or self._new(id)
        for block, start, end in reversed(self._blocks(request)):  # the deepest are the first to go
            if block in held.blocks:
                held.blocks.move_to_end(block)
            else:
                held.blocks[block] = end - start
                held.size += end - start
                self._readers.setdefault(block, set()).add(id)
        self._trim(id, held)

    def resize(self, id: str, characters: float) -> None:
        """A replica's cache holds so much text."""
        held = self._replicas.get(id) or self._new(id)
        held.room = characters
        self._trim(id, held)

    def forget(self, id: str) -> None:
        """A replica is gone, and its cache with it."""
        held = self._replicas.pop(id, _Held())
        held.room = 0
        self._trim(id, held)

    def _new(self, id: str) -> _Held:
        held = self._replicas[id] = _Held()
        if len(self) > self._settings.most_blocks // 2:
            for other in self._replicas.items():  # the shares are smaller now
                self._trim(*other)
        return held

    def _trim(self, id: str, held: _Held) -> None:
        """Drop what a replica no longer has, or what is above its share of the index."""
        share = self._settings.most_blocks // max(1, len(self._replicas))
        while held.blocks and (held.size > held.room or len(held.blocks) > share):
            block, size = held.blocks.popitem(last=False)
            held.size -= size
            self._readers[block].remove(id)
            if not self._readers[block]:
                del self._readers[block]

    def _blocks(self, request: RoutedRequest) -> list[tuple[int, int, int]]:
        """The hash of each whole block of the prompt, and where it begins and ends."""
        text = request.prompt
        start, block, found = 0, hash((request.mode, request.memory_key)), []
        for end in self._ends:
            if end > len(text):
                break
            block = hash((block, text[start:end]))
            found.append((block, start, end))
            start = end
        return found


def _block_ends(settings: RoutingSettings) -> list[int]:
    """Return the ends of blocks, in characters."""
    ends, unit = [settings.first_block], settings.first_block
    while ends[-1] < MOST_CHARACTERS:
        blocks = max(1, int(ends[-1] * settings.block_growth / unit))
        ends.append(ends[-1] + blocks * unit)
    return ends
