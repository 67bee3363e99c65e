"""Sends a call to the replica that it names: `RoutedEngine` has chosen it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

# What routers of this process know: by application, the replicas that run, each with its latest report.
RUNNING: dict[str, dict[str, Mapping[str, Any]]] = {}


class NamedReplicaRouter(RequestRouter):  # type: ignore[misc]
    """The first argument of each call is the id of a replica, or "" for any replica. Where the named one is gone,
    another takes the call, and its answer says which one. Ray gives each router all replicas and their reports
    whenever one changes; they are passed to `RUNNING`."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        name = pending_request.args[0] if pending_request and pending_request.args else ""
        chosen = [one for one in candidate_replicas if one.replica_id.unique_id == name]
        for one in chosen:
            # else Ray asks the replica first how long its queue is; a replica that is full refuses by itself
            if self.replica_queue_len_cache.get(one.replica_id) is None:
                self.replica_queue_len_cache.update(one.replica_id, 0)
        return [chosen or candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        # Ray takes this class to other processes by value, so it imports the dictionary
        from fastslow.serve.ray.router import RUNNING

        reports = {one.replica_id.unique_id: one.routing_stats or {} for one in replicas}
        RUNNING[self.app_name] = reports
