"""Sends a call to the replica that it names: `RoutedEngine` has chosen it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

# What routers of this process know: by application, the replicas that run, each with its latest report.
RUNNING: dict[str, dict[str, Mapping[str, Any]]] = {}


class NamedReplicaRouter(RequestRouter):  # type: ignore[misc]
    """The first argument of each call is the id of a replica, or "" for any replica. Where the named one is gone,
    another takes the call, and its answer says which one.

    Ray gives each router all replicas and their reports whenever one changes; they are passed to `RUNNING`.
    A replica that could not be reached is left out until it reports again: Ray's controller needs seconds to
    know that it is gone. Ray takes this class to other processes by value, so it imports that dictionary.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Called by Ray, once."""
        self._unreachable: dict[str, Mapping[str, Any]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        name = pending_request.args[0] if pending_request and pending_request.args else ""
        chosen = [one for one in candidate_replicas if _name(one.replica_id) == name]
        for one in chosen:
            # else Ray asks the replica first how long its queue is; a replica that is full refuses by itself
            if self.replica_queue_len_cache.get(one.replica_id) is None:
                self.replica_queue_len_cache.update(one.replica_id, 0)
        return [chosen or candidate_replicas]

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_unavailable(replica_id)
        self._leave_out(_name(replica_id))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._leave_out(_name(replica_id))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        reports = {_name(one.replica_id): one.routing_stats or {} for one in replicas}
        self._unreachable = {
            name: report
            for name, report in self._unreachable.items()
            if reports.get(name) == report
        }
        self._pass_on({n: r for n, r in reports.items() if n not in self._unreachable})

    def _leave_out(self, name: str) -> None:
        known = _known().get(self.app_name, {})
        if name in known:
            self._unreachable[name] = known[name]
            self._pass_on({n: r for n, r in known.items() if n != name})

    def _pass_on(self, reports: dict[str, Mapping[str, Any]]) -> None:
        _known()[self.app_name] = reports


def _name(replica_id: ReplicaID) -> str:
    return str(replica_id.unique_id)


def _known() -> dict[str, dict[str, Mapping[str, Any]]]:
    from fastslow.serve.ray.router import RUNNING

    return RUNNING
