"""Routers to compare: the real one, and models of two that Ray has."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import fields
from random import Random
from typing import Protocol

from fastslow.engine.params import nearest
from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings

Clock = Callable[[], float]
QueueLength = Callable[[str], int]


class ComparedRouter(Protocol):
    """What `ReplicaChooser` has."""

    def set_replicas(self, ids: Iterable[str]) -> None: ...
    def report(self, id: str, report: ReplicaReport) -> None: ...
    def rank(self, request: RoutedRequest) -> list[str]: ...
    def routed(self, request: RoutedRequest, id: str) -> None: ...
    def ended(self, request_id: str) -> None: ...


class PowerOfTwo:
    """Of two replicas by chance the one that answers fewer requests: a model of Ray's default router, which
    asks both for their queue's length.

    Args:
        length: requests that a replica has now.
        random: makes the choices.
    """

    def __init__(self, length: QueueLength, random: Random) -> None:
        self._length = length
        self._random = random
        self._ids: list[str] = []

    def set_replicas(self, ids: Iterable[str]) -> None:
        self._ids = list(ids)

    def report(self, id: str, report: ReplicaReport) -> None:
        """It asks for itself."""

    def rank(self, request: RoutedRequest) -> list[str]:
        free = [id for id in self._ids if id not in request.avoid] or self._ids
        two = self._random.sample(free, min(2, len(free)))
        return sorted(two, key=self._length)

    def routed(self, request: RoutedRequest, id: str) -> None:
        """It remembers nothing."""

    def ended(self, request_id: str) -> None:
        """It remembers nothing."""


BLOCK = 64  # characters
MATCH = 0.1  # of a prompt, below which a match does not count


class PrefixOnly:
    """The replica that was sent most of the prompt before: a model of Ray's `PrefixCacheAffinityRouter` with
    its defaults. It knows no modes and no load: below a tenth of the prompt it takes the replica that was sent
    the least text, and of several alike the one that answers fewest requests.

    The text is compared in blocks of 64 characters here, there in single ones.

    Args:
        length: requests that a replica has now.
        random: breaks ties.
    """

    def __init__(self, length: QueueLength, random: Random) -> None:
        self._length = length
        self._random = random
        self._blocks: dict[int, dict[str, None]] = {}  # who has it, in the order of their coming
        self._sizes: dict[str, int] = {}  # blocks of each replica
        self._smallest: list[tuple[int, float, str]] = []  # some sizes are old

    def set_replicas(self, ids: Iterable[str]) -> None:
        there = dict.fromkeys(ids)
        for id in [id for id in self._sizes if id not in there]:
            del self._sizes[id]
            for holders in self._blocks.values():
                holders.pop(id, None)
        for id in there:
            if id not in self._sizes:
                self._sizes[id] = 0
                self._note(id)

    def report(self, id: str, report: ReplicaReport) -> None:
        """It knows no load."""

    def rank(self, request: RoutedRequest) -> list[str]:
        if not self._sizes:
            return []
        best: Iterable[str] = ()
        matched = 0
        for block in self._hashes(request):
            holders = self._blocks.get(block)
            if not holders:
                break
            best = holders
            matched += 1
        if not best or matched * BLOCK < MATCH * len(request.prompt):
            best = (self._least(),)
        free = [id for id in best if id not in request.avoid]
        if not free:
            free = [id for id in self._sizes if id not in request.avoid] or list(self._sizes)
        lengths = [self._length(id) for id in free]
        least = min(lengths)
        return [self._random.choice([id for id, n in zip(free, lengths) if n == least])]

    def routed(self, request: RoutedRequest, id: str) -> None:
        if id not in self._sizes:
            return
        for block in self._hashes(request):
            holders = self._blocks.setdefault(block, {})
            if id not in holders:
                holders[id] = None
                self._sizes[id] += 1
        self._note(id)

    def ended(self, request_id: str) -> None:
        """It knows no load."""

    def _hashes(self, request: RoutedRequest) -> Iterable[int]:
        block, text = 0, request.prompt
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            block = hash((block, text[start : start + BLOCK]))
            yield block

    def _note(self, id: str) -> None:
        heapq.heappush(self._smallest, (self._sizes[id], self._random.random(), id))

    def _least(self) -> str:
        while self._sizes.get(self._smallest[0][2]) != self._smallest[0][0]:
            heapq.heappop(self._smallest)
        return self._smallest[0][2]


OURS = "fastslow"
NAMES = {OURS: "fastslow", "prefix": "prefix only (Ray's)", "pow2": "power of two (Ray's)"}
ROUTERS = tuple(NAMES)


def check_router(name: str) -> None:
    """ValueError: there is none of this name."""
    if name not in ROUTERS:
        raise ValueError(f"router={name!r} is unknown{nearest(name, ROUTERS)}")


def router(
    name: str, length: QueueLength, clock: Clock, settings: RoutingSettings
) -> ComparedRouter:
    """A router by name.

    Args:
        length: requests that a replica has now.
        clock: seconds since 1970.
        settings: of the real one; its seed is that of all.
    """
    check_router(name)
    if name == OURS:
        return ReplicaChooser(settings, clock)
    random = Random(settings.seed)
    return PrefixOnly(length, random) if name == "prefix" else PowerOfTwo(length, random)


def read_routing(text: str) -> RoutingSettings:
    """Settings of the real router, as "name=value,name=value".

    Raises:
        ValueError: an unknown name, or a value that is no number or out of range.
    """
    known = {f.name: f for f in fields(RoutingSettings) if f.name != "seed"}
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"routing: {name!r} is unknown{nearest(name, known)}")
        try:
            given[name] = int(value) if known[name].type == "int" else float(value)
        except ValueError:
            raise ValueError(f"routing: {name}={value!r} must be a number") from None
    return RoutingSettings(**given)  # type: ignore[arg-type]
