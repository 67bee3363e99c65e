"""`ReplicaChooser` as a request router of Ray Serve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.report_reader import ReportReader
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings


@dataclass(slots=True)
class _Counted:
    """A request that counts as sent to a replica, from the choice on."""

    pending: PendingRequest
    request: RoutedRequest
    replica: str


class FastSlowRouter(RequestRouter):  # type: ignore[misc]
    """Asks a `ReplicaChooser`; the request is the `RoutedRequest` among a call's arguments.

    Ray takes the first rank that has a replica with room (`max_ongoing_requests`), so each rank is one
    replica. It is given to the very request that asked, since this router is no `FIFOMixin`. A stream counts
    as running until its end. A call without a `RoutedRequest`, or with one that names its replica (cancel,
    trace and the like), counts as nothing.

    Arguments of `request_router_kwargs` are the fields of `RoutingSettings`. Ray takes this class to other
    processes by value, with the globals that it uses: none of them may hold an open file, as a logger does.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Called by Ray, once."""
        self._chooser = ReplicaChooser(RoutingSettings(**settings), time.time)
        self._by_name: dict[str, RunningReplica] = {}
        self._reports = ReportReader()
        self._counted: dict[str, list[_Counted]] = {}  # by Ray's id of the request
        self._numbers = count()
        self._unsure: set[str] = set()  # replicas that could not be reached since their last report

    @property
    def chooser(self) -> ReplicaChooser:
        """What decides."""
        return self._chooser

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All replicas, the best one first. It never waits: Ray has few tasks that route."""
        request = self._request(pending_request)
        ranked = self._chooser.rank(request)
        if pending_request is not None and not request.replica and request.id:
            # at once, so that what is chosen before the next report knows of it
            self._count(pending_request, request, ranked)
        there = {str(r.replica_id.unique_id) for r in candidate_replicas}
        ranks = [[self._by_name[name]] for name in ranked if name in there]
        if ranks:
            self._know(ranks[0][0])
        return ranks

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """A replica took it: perhaps not the best one, where that is full."""
        name = str(replica_id.unique_id)
        for counted in self._counted.get(pending_request.metadata.internal_request_id, ()):
            if counted.pending is pending_request and counted.replica != name:
                counted.replica = name
                self._chooser.routed(counted.request, name)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It is over; also where the replica did not take it, and Ray asks for another one."""
        name = str(replica_id.unique_id)
        counted = self._counted.get(internal_request_id, [])
        for one in counted:
            if one.replica == name:
                self._drop(one)
                return
        if len(counted) == 1:  # it went to another replica than was said
            self._drop(counted[0])

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_unavailable(replica_id)
        self._unsure.add(str(replica_id.unique_id))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._set_replicas(list(self.curr_replicas.values()))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas come, go, or report; Ray tells of all at once."""
        self._set_replicas(replicas)
        super().update_replicas(replicas)

    def _set_replicas(self, replicas: list[RunningReplica]) -> None:
        names = {str(r.replica_id.unique_id): r for r in replicas}
        if names.keys() != self._by_name.keys():
            self._chooser.set_replicas(names)
        self._by_name = names
        self._reports.keep(names.keys())
        for name, running in names.items():
            report = self._reports.read(name, running.routing_stats)
            if report is not None:
                self._chooser.report(name, report)
                self._unsure.discard(name)
        self._unsure &= names.keys()

    def _request(self, pending: PendingRequest | None) -> RoutedRequest:
        """What the call says of itself."""
        if pending is not None:
            for value in (*pending.args, *pending.kwargs.values()):
                if isinstance(value, RoutedRequest):
                    for counted in self._counted.get(pending.metadata.internal_request_id, ()):
                        if counted.pending is pending:
                            return counted.request  # Ray asks again: its replicas were full
                    # a request that is asked again elsewhere keeps its id, and counts by itself
                    return replace(value, id=f"{value.id}/{next(self._numbers)}")
        return RoutedRequest("", "", False, "", 0, 0)

    def _count(self, pending: PendingRequest, request: RoutedRequest, ranked: list[str]) -> None:
        counted = self._counted.setdefault(pending.metadata.internal_request_id, [])
        if not ranked or any(one.pending is pending for one in counted):
            return
        one = _Counted(pending, request, ranked[0])
        counted.append(one)
        self._chooser.routed(request, ranked[0])
        pending.future.add_done_callback(
            lambda future: self._drop(one) if future.cancelled() else None
        )

    def _drop(self, one: _Counted) -> None:
        """It counts no more."""
        self._chooser.ended(one.request.id)
        key = one.pending.metadata.internal_request_id
        left = [other for other in self._counted.get(key, ()) if other is not one]
        if left:
            self._counted[key] = left
        else:
            self._counted.pop(key, None)

    def _know(self, replica: RunningReplica) -> None:
        """Where Ray does not know a replica's queue it asks the replica first, and goes on to the next rank
        if that is too busy to say so at once: a deep request would come to a replica that is kept free of
        them. What this router has there is near enough: a replica that is full refuses. One that could not be
        reached is asked: else Ray would send to a dead one again and again, until its controller knows."""
        if str(replica.replica_id.unique_id) in self._unsure:
            return
        if self.replica_queue_len_cache.get(replica.replica_id) is None:
            answers = self._chooser.answers(str(replica.replica_id.unique_id))
            known = min(answers, max(0, replica.max_ongoing_requests - 1))
            self.replica_queue_len_cache.update(replica.replica_id, known)
