"""Keeps replicas free of deep requests while quick ones with a target come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from fastslow.serve.routing.load import ReplicaLoad
from fastslow.serve.routing.settings import RoutingSettings

CALM_LOOKS = 8.0  # over which steps without deep ones are averaged: they are compared for long


class Guard:
    """Which replicas take no deep request.

    While quick requests with a target come, some replicas are kept for them: one of two, and of more as
    many as they need, at most all but one. Deep requests wait in the queues of the others, however long
    those are. What is deep on a kept replica already runs to its end there.

    Which ones are kept follows from their names alone, so that all routers keep the same, and a replica
    that comes or goes changes one place. How many: more at once where more are needed, fewer only slowly.

    On large machines quick ones hardly feel deep ones in their steps. Where reports show that, and none of
    them waits for a place, kept replicas take some as well (`allows`).
    """

    def __init__(self, settings: RoutingSettings) -> None:
        self._settings = settings
        self._order: list[str] = []  # the first ones are kept
        self._kept: frozenset[str] = frozenset()
        self._kept_list: list[str] = []
        self._open: list[str] = []  # all others
        self._last = -math.inf  # when a quick request with a target was seen
        self._looked = -math.inf
        self._level = 0.0  # how many of them there are, lately
        self._calm = 0.0  # seconds of steps without deep ones, where such were seen
        self._room = 0.0  # deep ones that a kept replica may have

    def set_replicas(self, ids: Iterable[str]) -> None:
        """There are these now."""
        self._order = sorted(ids, key=_place)
        self._keep(len(self._kept))

    @property
    def kept(self) -> frozenset[str]:
        """The replicas that take no deep request now; empty where nothing is guarded."""
        return self._kept

    @property
    def kept_list(self) -> Sequence[str]:
        """The same, to draw from."""
        return self._kept_list

    @property
    def open(self) -> Sequence[str]:
        """All others."""
        return self._open

    @property
    def mild(self) -> bool:
        """Whether kept replicas may take deep requests."""
        return self._room > 0

    def allows(self, load: ReplicaLoad) -> bool:
        """Whether a kept replica takes one more deep request."""
        return load.deep < self._room

    def seen(self, now: float) -> None:
        """A quick request with a target came."""
        self._last = now
        if not self._kept:
            self._keep(1)

    def look(self, loads: Mapping[str, ReplicaLoad], now: float) -> None:
        """Count such requests, from time to time; other routers may send some, too."""
        settings = self._settings
        passed = now - self._looked
        if 0 <= passed < settings.guard_look:
            return
        self._looked, self._last = now, min(now, self._last)  # the clock may have been set back
        urgent = sum(load.urgent for load in loads.values())
        if urgent:
            self._last = now
        if now - self._last > settings.guard_seconds:
            self._level = 0.0
            self._keep(0)
            return
        self._compare(loads)
        self._level = max(
            urgent, self._level * math.exp(-max(0.0, passed) / settings.guard_release)
        )
        places = min((load.places for load in loads.values() if load.places), default=0)
        each = max(settings.urgent_each, settings.urgent_share * places)
        need = math.ceil(self._level * settings.urgent_spare / each)
        self._keep(max(1, need))

    def _compare(self, loads: Mapping[str, ReplicaLoad]) -> None:
        """Steps with deep ones in them, beside those with quick ones alone."""
        calm = [load.step for load in loads.values() if load.urgent and not load.deep and load.step]
        if calm:
            now = sum(calm) / len(calm)
            self._calm = self._calm + (now - self._calm) / CALM_LOOKS if self._calm else now
        mixed = [load for load in loads.values() if load.deep and load.step]
        longest, settings = max((load.step for load in mixed), default=0.0), self._settings
        self._room = 0.0
        full = any(load.waiting for load in mixed)
        if self._calm and not full and longest <= settings.guard_growth * self._calm:
            proof = [m.running for m in mixed if m.running >= settings.guard_proof * m.places > 0]
            self._room = settings.guard_room * max(proof, default=0)

    def _keep(self, count: int) -> None:
        count = max(0, min(count, len(self._order) - 1))
        if count != len(self._kept_list) or self._order != self._kept_list + self._open:
            self._kept_list, self._open = self._order[:count], self._order[count:]
            self._kept = frozenset(self._kept_list)


def _place(id: str) -> bytes:
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
