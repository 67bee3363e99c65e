"""Which replica answers a request."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from random import Random

from fastslow.serve.engines.routing.load import ReplicaLoad, Sent
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest
from fastslow.serve.engines.routing.routed_prefixes import RoutedPrefixes
from fastslow.serve.engines.routing.settings import RoutingSettings

MEMORY = 64.0  # prompts over which characters of a token are averaged
LOOK = 0.5  # seconds between two looks at the reports for quick requests: they are older


class ReplicaChooser:
    """Ranks replicas by the seconds that a request would lose there; see `ReplicaLoad.seconds`.

    The prompt's own part is what the replica has not read before, so a request goes where its prefix is
    known, unless it would wait there for longer than reading takes.

    While quick requests with a target come, a fixed share of the replicas is reserved for quick requests: to
    a deep request the reserved ones come after all others. Which ones are reserved follows from their names,
    so that all routers reserve the same ones. Deep requests that run there already run to their end.

    No call waits, and none holds a request back. Of many replicas only a few are compared.

    Args:
        settings: see there.
        clock: seconds since 1970, as replicas write into their reports.

    Attributes:
        reserved: replicas that take no deep request now, as long as there are others.
    """

    def __init__(self, settings: RoutingSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._random = Random(settings.seed)
        self._prefixes = RoutedPrefixes(settings, self._random)
        self._loads: dict[str, ReplicaLoad] = {}
        self._ids: list[str] = []
        self._order: list[str] = []  # the first ones are reserved
        self.reserved: frozenset[str] = frozenset()
        self._urgent_at = -math.inf  # when a quick request with a target was last seen
        self._looked = -math.inf  # when reports were last searched for such requests
        self._sent: OrderedDict[str, Sent] = OrderedDict()  # by request, the oldest first
        self._newest = 0.0  # report, when it came
        self._characters = settings.page_characters  # of a token

    def set_replicas(self, ids: Iterable[str]) -> None:
        """There are these now. What was known of others is forgotten."""
        there = dict.fromkeys(ids)
        for id in [id for id in self._loads if id not in there]:
            del self._loads[id]
            self._prefixes.forget(id)
        for id in there:
            if id not in self._loads:
                self._loads[id] = ReplicaLoad(self._settings)
        self._ids = list(there)
        self._order = sorted(there, key=_place)
        self._reserve(bool(self.reserved))

    def report(self, id: str, report: ReplicaReport) -> None:
        """A replica says how it is; one that is not there is not heard."""
        load = self._loads.get(id)
        if load is None:
            return
        self._newest = self._clock()
        load.report(report, self._newest)
        self._prefixes.resize(id, report.pages * report.page_tokens * self._characters)

    def rank(self, request: RoutedRequest) -> list[str]:
        """All replicas, the best one first; those that it should avoid come last."""
        now = self._clock()
        self._watch(request, now)
        held = self._held(request)
        looked = self._looked_at(request, held)
        costs = {id: self._cost(request, id, held, now) for id in looked}
        best = sorted(looked, key=costs.__getitem__)
        ranked = best + self._rest(set(best))
        if request.deep and self.reserved:
            ranked.sort(key=self.reserved.__contains__)
        if request.avoid:
            ranked.sort(key=frozenset(request.avoid).__contains__)
        return ranked

    def routed(self, request: RoutedRequest, id: str) -> None:
        """A request goes to a replica; said again with another one, it went there instead."""
        now = self._clock()
        self.ended(request.id)
        load = self._loads.get(id)
        if load is None:
            return
        cached = self._cached(request, self._prefixes.read_by(request, id))
        unread = max(0.0, request.prompt_tokens - cached)
        sent = Sent(id, request.deep, request.urgent, unread, now)
        load.sent(request.id, sent)
        self._sent[request.id] = sent
        self._prefixes.add(request, id)
        self._learn_characters(request)
        while self._sent:
            oldest = next(iter(self._sent))
            lost = now - self._sent[oldest].at > self._settings.lost_seconds
            if not lost and len(self._sent) <= self._settings.most_sent:
                break
            self.ended(oldest)

    def ended(self, request_id: str) -> None:
        """A request is over, however it ended."""
        sent = self._sent.pop(request_id, None)
        if sent is not None and sent.id in self._loads:
            self._loads[sent.id].ended(request_id)

    def _held(self, request: RoutedRequest) -> dict[str, int]:
        """Characters of the prompt that replicas have read."""
        few = len(self._ids) <= self._settings.few
        most = len(self._ids) if few else self._settings.holders
        return {match.id: match.characters for match in self._prefixes.match(request, most)}

    def _looked_at(self, request: RoutedRequest, held: dict[str, int]) -> list[str]:
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

    def _cost(self, request: RoutedRequest, id: str, held: dict[str, int], now: float) -> float:
        load = self._loads[id]
        seconds = load.seconds(request, self._cached(request, held.get(id, 0)), now)
        if load.heard_at is not None:  # the clock may have been set back since
            silent = min(self._newest, now) - load.heard_at
            seconds += max(0.0, silent - self._settings.silent_seconds)
        return seconds

    def _cached(self, request: RoutedRequest, characters: int) -> float:
        """Tokens of so many characters of the prompt; of a longer prompt than was read, in proportion."""
        if not characters:
            return 0.0
        return request.prompt_tokens * characters / len(request.prompt)

    def _rest(self, best: set[str]) -> list[str]:
        """All others from a random one on, so that not one is always the first."""
        start = self._random.randrange(len(self._ids)) if self._ids else 0
        return [id for id in self._ids[start:] + self._ids[:start] if id not in best]

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

    def _learn_characters(self, request: RoutedRequest) -> None:
        """How long tokens are, of prompts that were seen whole."""
        length = len(request.prompt)
        if request.prompt_tokens > 0 and 0 < length < MOST_CHARACTERS:
            self._characters += (length / request.prompt_tokens - self._characters) / MEMORY


def _place(id: str) -> bytes:
    return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
