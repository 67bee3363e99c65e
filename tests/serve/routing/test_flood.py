"""Two replicas under a flood of deep requests, on paper: queues and slots, and a clock that is moved."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import pytest
from routing_tools import Clock, chooser_of, report
from routing_tools import deep as deep_request
from routing_tools import quick as quick_request

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest

PLACES = 8  # that run together on a replica
QUICK, DEEP = 0.4, 20.0  # seconds of an answer that runs alone
STEP = 0.05  # seconds, of an answer that runs alone
SLOWER = 0.1  # of a step, for each answer that runs beside it


@dataclass
class FakeReplica:
    """Runs PLACES answers at a time; quick ones are taken in first."""

    running: dict[str, bool] = field(default_factory=dict)  # whether it is deep
    waiting: deque[RoutedRequest] = field(default_factory=deque)

    def take(self) -> RoutedRequest | None:
        """The next one to start, if there is a place."""
        if not self.waiting or len(self.running) >= PLACES:
            return None
        one = next((r for r in self.waiting if not r.deep), self.waiting[0])
        self.waiting.remove(one)
        self.running[one.id] = one.deep
        return one

    def tell(self, at: float) -> ReplicaReport:
        deep = sum(self.running.values()) + sum(r.deep for r in self.waiting)
        return report(
            at,
            running={"any": len(self.running)},
            step_seconds={"any": STEP * (1 + SLOWER * max(0, len(self.running) - 1))},
            places=PLACES,
            waiting={"any": len(self.waiting)},
            deep=deep,
            urgent=len(self.running) + len(self.waiting) - deep,
            queue_seconds=5.0 if self.waiting else 0.0,
        )


class Flood:
    """Arrivals through a router, to fake replicas that report once a second."""

    def __init__(self, ids: list[str], **settings: float) -> None:
        self.clock = Clock()
        self.chooser: ReplicaChooser = chooser_of(ids, self.clock, **settings)
        self.replicas = {id: FakeReplica() for id in ids}
        self.first: dict[str, float] = {}  # seconds to the first token of quick ones, by id
        self.deep_done = 0

    def run(self, quick_every: float, deep_every: float, seconds: float, quick_from: float) -> None:
        start, events, number = self.clock.now, [], 0
        for every, kind, begin in (
            (quick_every, "quick", quick_from),
            (deep_every, "deep", 0.0),
            (1.0, "report", 0.0),
        ):
            moment = begin
            while every and moment < seconds:
                events.append((start + moment, number, kind, ""))
                moment, number = moment + every, number + 1
        heapq.heapify(events)
        places: dict[str, str] = {}
        called: dict[str, float] = {}
        while events:
            self.clock.now, _, kind, what = heapq.heappop(events)
            if self.clock.now > start + seconds:
                break
            if kind == "report":
                for id, replica in self.replicas.items():
                    self.chooser.report(id, replica.tell(self.clock.now))
                continue
            if kind == "end":
                id = places.pop(what)
                self.deep_done += self.replicas[id].running.pop(what)
                self.chooser.ended(what)
            else:
                make = quick_request if kind == "quick" else deep_request
                request = make(f"{kind} {len(called)}")
                id = self.chooser.rank(request)[0]
                self.chooser.routed(request, id)
                places[request.id], called[request.id] = id, self.clock.now
                self.replicas[id].waiting.append(request)
            replica = self.replicas[id]
            while (begun := replica.take()) is not None:
                slower = 1 + SLOWER * (len(replica.running) - 1)
                if not begun.deep:
                    self.first[begun.id] = self.clock.now - called[begun.id] + STEP * slower
                number += 1
                took = (DEEP if begun.deep else QUICK) * slower
                heapq.heappush(events, (self.clock.now + took, number, "end", begun.id))

    def p95(self) -> float:
        return sorted(self.first.values())[int(0.95 * len(self.first))]


def calm() -> float:
    """The figure without deep ones, on as many replicas."""
    flood = Flood(["a", "b"])
    flood.run(quick_every=0.25, deep_every=0, seconds=120, quick_from=0)
    return flood.p95()


def test_quick_ones_hardly_feel_a_flood() -> None:
    flood = Flood(["a", "b"])
    flood.run(quick_every=0.25, deep_every=0.5, seconds=120, quick_from=0)
    assert flood.p95() <= 1.3 * calm()
    assert flood.deep_done > 10


def test_without_reserved_replicas_they_would() -> None:
    flood = Flood(["a", "b"], reserved_seconds=-1.0)
    flood.run(quick_every=0.25, deep_every=0.5, seconds=120, quick_from=0)
    assert flood.p95() > 10 * calm()


def test_a_flood_that_was_there_before_drains_from_one() -> None:
    flood = Flood(["a", "b"])
    flood.run(quick_every=0.25, deep_every=2.0, seconds=400, quick_from=100)
    late = sorted(list(flood.first.values())[-400:])
    assert late[int(0.95 * len(late))] <= 1.3 * calm()


@pytest.mark.parametrize("count", [3, 10, 100])
def test_more_replicas(count: int) -> None:
    ids = [f"r{n}" for n in range(count)]
    alone, flood = Flood(ids), Flood(ids)
    alone.run(quick_every=1 / count, deep_every=0, seconds=40, quick_from=0)
    flood.run(quick_every=1 / count, deep_every=2 / count, seconds=40, quick_from=0)
    assert flood.p95() <= 1.3 * alone.p95()
    busy = [replica for replica in flood.replicas.values() if any(replica.running.values())]
    assert len(busy) > count / 2, "most take deep ones"
