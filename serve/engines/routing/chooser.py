"""Which replica answers a request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from random import Random

from fastslow.serve.engines.routing.guard import Guard
from fastslow.serve.engines.routing.load import ReplicaLoad, Sent
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest
from fastslow.serve.engines.routing.routed_prefixes import RoutedPrefixes
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.serve.engines.routing.step_growth import StepGrowth

MEMORY = 64.0  # prompts over which characters of a token are averaged


class ReplicaChooser:
    """Ranks replicas by the seconds that a request would lose there; see `ReplicaLoad.seconds`.

    The prompt's own part is what the replica has not read before, so a request goes where its prefix is
    known, unless it would wait there for longer than reading takes. `Guard` keeps some replicas free of deep
    requests while quick ones with a target come: to a deep request those come after all others.

    No call waits, and none holds a request back. Where there are many replicas only a few are compared.

    Args:
        settings: see there.
        clock: seconds since 1970, as replicas write into their reports.
    """

    def __init__(self, settings: RoutingSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._random = Random(settings.seed)
        self._prefixes = RoutedPrefixes(settings, self._random)
        self._growth = StepGrowth(settings)
        self._guard = Guard(settings, self._growth)
        self._loads: dict[str, ReplicaLoad] = {}
        self._ids: list[str] = []
        self._sent: OrderedDict[str, Sent] = OrderedDict()  # by request, the oldest first
        self._newest = 0.0  # report, when it came
        self._characters = settings.page_characters  # of a token

    @property
    def kept(self) -> frozenset[str]:
        """Replicas that take no deep request now, as long as there are others."""
        return self._guard.kept

    def answers(self, id: str) -> int:
        """What a replica answers or has in its queue, as far as is known."""
        load = self._loads.get(id)
        return 0 if load is None else load.answers

    def set_replicas(self, ids: Iterable[str]) -> None:
        """There are these now. What was known of others is forgotten."""
        there = dict.fromkeys(ids)
        for id in [id for id in self._loads if id not in there]:
            del self._loads[id]
            self._prefixes.forget(id)
        for id in there:
            if id not in self._loads:
                self._loads[id] = ReplicaLoad(self._settings, self._growth)
        self._ids = list(there)
        self._guard.set_replicas(there)

    def report(self, id: str, report: ReplicaReport) -> None:
        """A replica says how it is; one that is not there is not heard."""
        load = self._loads.get(id)
        if load is None:
            return
        self._newest = self._clock()
        load.report(report, self._newest)
        self._growth.note(load.running, load.step)
        self._prefixes.resize(id, report.pages * report.page_tokens * self._characters)

    def rank(self, request: RoutedRequest) -> list[str]:
        """All replicas, the best one first; those that it should avoid come last."""
        now = self._clock()
        if request.urgent and request.latency_ms is not None:
            self._guard.seen(request.latency_ms / 1000, now)
        self._guard.look(self._loads, now)
        held = self._held(request)
        looked = self._looked_at(request, held)
        costs = {id: self._cost(request, id, held, now) for id in looked}
        best = sorted(looked, key=costs.__getitem__)
        rest = self._rest(set(best))
        if request.deep and self._guard.kept:
            allowed = [id for id in best if not costs[id][0]]
            kept = self._guard.kept
            others = [id for id in rest if id not in kept]
            last = best[len(allowed) :] + [id for id in rest if id in kept]
            return self._in_order(request, allowed + others + last)
        return self._in_order(request, best + rest)

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
        looked = dict.fromkeys(held)
        pool = self._guard.open if request.deep and not self._guard.mild else self._ids
        self._draw(looked, pool, settings.choices)
        if request.urgent and self._guard.kept:
            self._draw(looked, self._guard.kept_list, settings.choices)
        return list(looked)

    def _draw(self, looked: dict[str, None], pool: Sequence[str], count: int) -> None:
        """Add replicas of a pool by chance, that are not there yet where there are any."""
        for _ in range(count * self._settings.attempts):
            if count == 0 or not pool:
                return
            id = pool[self._random.randrange(len(pool))]
            if id not in looked:
                looked[id] = None
                count -= 1

    def _cost(
        self, request: RoutedRequest, id: str, held: dict[str, int], now: float
    ) -> tuple[bool, float]:
        """What comes first is smaller."""
        load = self._loads[id]
        seconds = load.seconds(request, self._cached(request, held.get(id, 0)), now)
        if load.heard_at is not None:  # the clock may have been set back since
            silent = min(self._newest, now) - load.heard_at
            seconds += max(0.0, silent - self._settings.silent_seconds)
        barred = request.deep and id in self._guard.kept and not self._guard.allows(load)
        return barred, seconds

    def _cached(self, request: RoutedRequest, characters: int) -> float:
        """Tokens of so many characters of the prompt; of a longer prompt than was read, in proportion."""
        if not characters:
            return 0.0
        return request.prompt_tokens * characters / len(request.prompt)

    def _rest(self, best: set[str]) -> list[str]:
        """All others from a random one on, so that not one is always the first."""
        start = self._random.randrange(len(self._ids)) if self._ids else 0
        return [id for id in self._ids[start:] + self._ids[:start] if id not in best]

    def _in_order(self, request: RoutedRequest, ranked: list[str]) -> list[str]:
        """The same with what a request may not or must have in its place."""
        if request.avoid:
            avoid = set(request.avoid)
            ranked = [r for r in ranked if r not in avoid] + [r for r in ranked if r in avoid]
        if request.replica in self._loads:
            ranked.remove(request.replica)
            ranked.insert(0, request.replica)
        return ranked

    def _learn_characters(self, request: RoutedRequest) -> None:
        """How long tokens are, of prompts that were seen whole."""
        length = len(request.prompt)
        if request.prompt_tokens > 0 and 0 < length < MOST_CHARACTERS:
            self._characters += (length / request.prompt_tokens - self._characters) / MEMORY
