"""Choice of the replica that answers a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from hashlib import blake2b
from random import Random

from fastslow.serve.engines.routing.load import ReplicaLoad, Sent
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.routed_prefixes import RoutedPrefixes
from fastslow.serve.engines.routing.settings import RoutingSettings

LOOK = 0.5  # seconds between two looks at the reports for quick requests: they are older


class ReplicaChooser:
    """Ranks replicas by the seconds that a request would lose there; see `ReplicaLoad.seconds`. The prompt's own part
    is what the replica has not read before, so a request goes where its prefix is known, unless it would wait there
    for longer than reading takes. No call waits, and none holds a request back.

    While quick requests with a target come, a fixed share of the replicas is reserved for quick requests: to a deep
    request the reserved ones come after all others. Which ones are reserved follows from their names, so that all
    routers reserve the same ones. clock: seconds since 1970, as replicas write into their reports."""

    def __init__(self, settings: RoutingSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._random = Random(settings.seed)
        self._prefixes = RoutedPrefixes(settings, self._random)
        self._loads: dict[str, ReplicaLoad] = {}
        self._ids: list[str] = []
        self._order: list[str] = []  # the first ones are reserved
        self.reserved = frozenset[str]()  # for quick requests, as long as there are others
        self._urgent_at = -math.inf  # when a quick request with a target was last seen
        self._looked = -math.inf  # when reports were last searched for such requests
        self._sent: dict[str, str] = {}  # by request that is not over: its replica
        self._newest = 0.0  # report, when it came

    def set_replicas(self, ids: Iterable[str]) -> None:
        """There are these now. What was known of others is forgotten."""
        self._ids = list(dict.fromkeys(ids))
        for id in self._loads.keys() - set(self._ids):
            self._prefixes.forget(id)
        self._loads = {id: self._loads.get(id) or ReplicaLoad(self._settings) for id in self._ids}
        self._order = sorted(self._ids, key=_place)
        self._reserve(bool(self.reserved))

    def report(self, id: str, report: ReplicaReport) -> None:
        """A replica says how it is; one that is not there is not heard."""
        load = self._loads.get(id)
        if load is None:
            return
        self._newest = self._clock()
        load.report(report, self._newest)
        characters = self._settings.page_characters * report.pages * report.page_tokens
        self._prefixes.resize(id, characters)

    def rank(self, request: RoutedRequest) -> list[str]:
        """All replicas, the best one first; those that it should avoid come last."""
        now = self._clock()
        self._watch(request, now)
        few = len(self._ids) <= self._settings.few
        held = self._prefixes.match(request, len(self._ids) if few else self._settings.holders)
        looked = self._looked_at(request, held)
        costs = {id: self._cost(request, id, held.get(id, 0), now) for id in looked}
        ranked = sorted(looked, key=costs.__getitem__)
        # all others from a random one on, so that not one is always the first
        start = self._random.randrange(len(self._ids)) if self._ids else 0
        ranked += [id for id in self._ids[start:] + self._ids[:start] if id not in costs]
        if request.deep and self.reserved:
            ranked.sort(key=self.reserved.__contains__)
        if request.avoid:
            ranked.sort(key=request.avoid.count)  # twice: it failed under this request, too
        return ranked

    def routed(self, request: RoutedRequest, id: str) -> None:
        """A request goes to a replica."""
        load = self._loads.get(id)
        if load is None:
            return
        cached = _cached(request, self._prefixes.read_by(request, id))
        unread = max(0.0, request.prompt_tokens - cached)
        load.sent(request.id, Sent(request.deep, request.urgent, unread, self._clock()))
        self._sent[request.id] = id
        self._prefixes.add(request, id)

    def ended(self, request_id: str) -> None:
        """A request is over, however it ended."""
        load = self._loads.get(self._sent.pop(request_id, ""))
        if load is not None:
            load.ended(request_id)

    def _looked_at(self, request: RoutedRequest, held: Iterable[str]) -> list[str]:
        """The replicas that are compared, in random order, which breaks ties."""
        settings = self._settings
        if len(self._ids) <= settings.few:
            return self._random.sample(self._ids, len(self._ids))
        looked = list(held)
        count = len(self.reserved)
        pools = [self._order[count:] if request.deep else self._ids]
        if request.urgent:
            pools.append(self._order[:count])
        for pool in pools:
            others = [id for id in pool if id not in looked]
            looked += self._random.sample(others, min(settings.choices, len(others)))
        return looked

    def _cost(self, request: RoutedRequest, id: str, held: int, now: float) -> float:
        load = self._loads[id]
        seconds = load.seconds(request, _cached(request, held), now)
        if load.heard_at is not None:  # the clock may have been set back since
            silent = min(self._newest, now) - load.heard_at
            seconds += max(0.0, silent - self._settings.silent_seconds)
        return seconds

    def _watch(self, request: RoutedRequest, now: float) -> None:
        """Reserve replicas while quick requests with a target come; other routers may send some, too."""
        self._urgent_at = min(self._urgent_at, now)  # the clock may have been set back
        if request.urgent:
            self._urgent_at = now
        if not 0 <= now - self._looked < LOOK:
            self._looked = now
            if any(load.urgent for load in self._loads.values()):
                self._urgent_at = now
        self._reserve(now - self._urgent_at <= self._settings.reserved_seconds)

    def _reserve(self, wanted: bool) -> None:
        most = len(self._order) - 1
        share = round(self._settings.reserved_share * len(self._order))
        count = min(max(1, share), most) if wanted and most > 0 else 0
        self.reserved = frozenset(self._order[:count])


def _cached(request: RoutedRequest, characters: int) -> float:
    """Tokens of this number of characters of a prompt, of which a router reads only the beginning."""
    return request.prompt_tokens * characters / max(1, len(request.prompt))


def _place(id: str) -> bytes:
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
