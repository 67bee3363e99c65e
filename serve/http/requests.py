"""/v1/requests: running requests by the ids that clients know; cancel, stop thinking, trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request

from fastslow.engine.fair_table import FairTable
from fastslow.engine.params import shown
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.limits import Caller, Who
from fastslow.serve.http.body import json_router

REMEMBERED = 1000  # of those that are over, for their traces
router = json_router()
Name = tuple[str, str]
"""The caller's share, and a name that it gave or got: callers take no names from each other."""


class Requests:
    """The answer's id and the header's each find what the engine does for a request, for its own caller alone."""

    def __init__(self) -> None:
        self._running: dict[Name, list[str]] = {}
        self._over = FairTable[str, list[str]](REMEMBERED)

    @contextmanager
    def running(self, names: list[str], ids: list[str], who: Caller) -> Iterator[None]:
        """While a request runs. A name that runs already keeps its meaning."""
        own = [
            name for each in names if (name := (who.share or who.name, each)) not in self._running
        ]
        self._running.update(dict.fromkeys(own, ids))
        try:
            yield
        finally:
            for name in own:
                self._over.put(*name, self._running.pop(name))

    def find(self, name: str, who: Caller) -> list[str]:
        """The engine's ids of a request. Raises ApiError where the caller has none of this name."""
        own = who.share or who.name, name
        found = self._running.get(own) or self._over.get(*own)
        if found is None:
            raise _unknown(name)
        return found


@router.delete("/v1/requests/{id}")
async def cancel_request(id: str, request: Request, who: Who) -> dict[str, Any]:
    """End a request. Its client gets what was made so far."""
    found, engine = request.app.state.requests.find(id, who), request.app.state.engine
    return {"id": id, "done": any([await engine.cancel(each) for each in found])}


@router.post("/v1/requests/{id}/stop_thinking")
async def stop_thinking(id: str, request: Request, who: Who) -> dict[str, Any]:
    """Close the thought of a request now, so that it answers."""
    found, engine = request.app.state.requests.find(id, who), request.app.state.engine
    return {"id": id, "done": any([await engine.stop_thinking(each) for each in found])}


@router.get("/v1/requests/{id}/trace")
async def trace(id: str, request: Request, who: Who) -> dict[str, Any]:
    """Return what each step of a request drafted and accepted; while it runs, and for a while after."""
    found, engine = request.app.state.requests.find(id, who), request.app.state.engine
    traces = [await engine.trace(each) for each in found]
    if all(one is None for one in traces):
        raise _unknown(id)
    return {"id": id, "traces": traces}


def _unknown(id: str) -> ApiError:
    said = f"request {shown(id)} is not known: it is over, or was never there"
    return ApiError(404, said, param="id", code="request_not_found")
