"""Reports as they come to a router: new ones are passed on, damaged ones told once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from loguru import logger

from fastslow.serve.engines.routing.report import ReplicaReport


class ReportReader:
    """Remembers the latest report of each replica: routers are told all of them whenever one changes."""

    def __init__(self) -> None:
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._damaged: set[str] = set()

    def keep(self, ids: Collection[str]) -> None:
        """There are these replicas now."""
        self._latest = {id: values for id, values in self._latest.items() if id in ids}
        self._damaged &= set(ids)

    def read(self, id: str, values: Mapping[str, Any] | None) -> ReplicaReport | None:
        """A replica's report, if there is one that was not read before. One that is damaged, or of another
        version, counts as none; that is told once, until a good one comes."""
        if not values or self._latest.get(id) == values:
            return None
        self._latest[id] = values
        try:
            report = ReplicaReport.from_dict(values)
        except ValueError as error:
            if id not in self._damaged:
                logger.warning("replica {} is routed to as if it had not reported: {}", id, error)
            self._damaged.add(id)
            return None
        self._damaged.discard(id)
        return report
