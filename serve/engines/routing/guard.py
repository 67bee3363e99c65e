"""Keeps replicas free of deep requests while quick ones with a target come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from fastslow.serve.engines.routing.load import ReplicaLoad
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.serve.engines.routing.step_growth import StepGrowth

CALM_LOOKS = 8.0  # over which steps without deep ones are averaged: they are compared for long
KEPT_LOOKS = 8.0  # likewise, steps of kept replicas: a prompt may be read in the step of a report


class Guard:
    """Which replicas take no deep request.

    While quick requests with a target come, some replicas are kept for them: one of two, and of more as
    many as they need, at most all but one. Deep requests wait in the queues of the others, however long
    those are. What is deep on a kept replica already runs to its end there.

    Which ones are kept follows from their names alone, so that all routers keep the same, and a replica
    that comes or goes changes one place. How many: as many as answer all quick ones in steps well below the
    smallest target (`StepGrowth` tells how many fit); more at once where more are needed, fewer only slowly.
    Where the kept ones come near that target all the same there is one more, and where deep ones wait although
    the kept ones are far from it, one less.

    On large machines quick ones hardly feel deep ones in their steps. Where reports show that, and none of
    them waits for a place, kept replicas take some as well (`allows`).
    """

    def __init__(self, settings: RoutingSettings, growth: StepGrowth) -> None:
        self._settings = settings
        self._growth = growth
        self._order: list[str] = []  # the first ones are kept
        self._kept: frozenset[str] = frozenset()
        self._kept_list: list[str] = []
        self._open: list[str] = []  # all others
        self._last = -math.inf  # when a quick request with a target was seen
        self._looked = -math.inf
        self._target = math.inf  # seconds, the smallest one lately,
        self._target_at = -math.inf  # that came then
        self._level = 0.0  # how many of them there are, lately
        self._step = 0.0  # of the kept replicas, lately
        self._more = 0  # replicas than were reckoned, as they turned out to be too few or too many
        self._changed = -math.inf
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

    def seen(self, target: float, now: float) -> None:
        """A quick request with a target came. target: seconds."""
        self._last = now
        if target <= self._target or now - self._target_at > self._settings.guard_seconds:
            self._target, self._target_at = target, now
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
            self._level, self._more = 0.0, 0
            self._keep(0)
            return
        self._compare(loads)
        self._level = max(
            urgent, self._level * math.exp(-max(0.0, passed) / settings.guard_release)
        )
        places = min((load.places for load in loads.values() if load.places), default=0)
        each, most = self._each(places)
        expected = self._level * settings.urgent_spare
        least = max(1, math.ceil(expected / most))
        need = max(least, math.ceil(expected / each))
        change = self._correction(loads)
        if change and now - self._changed >= settings.guard_settle:
            self._more = max(least, min(len(self._kept_list) + change, len(self._order) - 1)) - need
            self._changed = now
        self._keep(max(least, need + self._more))

    def _each(self, places: int) -> tuple[float, float]:
        """Quick ones on one kept replica, and the most that may be there."""
        settings = self._settings
        usual = max(settings.urgent_each, settings.urgent_share * places)
        # n + bunch x sqrt(n) = places
        root = (math.sqrt(settings.bunch**2 + 4 * places) - settings.bunch) / 2
        most = max(usual, root**2)
        if not self._growth.known or self._target == math.inf:
            return usual, most
        fit = self._growth.answers_within(settings.target_share * self._target)
        return max(settings.urgent_each, min(fit, most)), most

    def _correction(self, loads: Mapping[str, ReplicaLoad]) -> int:
        """Whether there should be one more, or one less."""
        settings, limit = self._settings, self._settings.target_limit * self._target
        kept = [loads[id] for id in self._kept_list if id in loads]
        steps = [load.step for load in kept if load.running and load.step]
        if steps:
            now = sum(steps) / len(steps)
            self._step = self._step + (now - self._step) / KEPT_LOOKS if self._step else now
        if not kept:
            return 0
        waits = sum(load.queue_seconds[0] for load in kept) / len(kept)
        if self._step > limit or waits > limit:
            return 1
        if waits or self._step > settings.target_share * self._target:
            return 0
        others = [loads[id] for id in self._open if id in loads]
        places = sum(load.places for load in others)
        full = places and sum(load.answers for load in others) >= settings.full_share * places
        return -bool(full or any(load.queue_seconds[1] > settings.deep_wait for load in others))

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
