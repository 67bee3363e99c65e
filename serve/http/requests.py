"""/v1/requests: running requests by the ids that clients know; cancel, stop thinking, trace."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from fastslow.engine.params import shown
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.limits import Caller, Who
from fastslow.serve.http.body import json_router

REMEMBERED = 1000  # of those that are over, for their traces
router = json_router()


@dataclass(slots=True)
class Started:
    """A request: whose it is, and what the engine was asked for it."""

    who: Caller
    asks: list[str]


class Requests:
    """The answer's id and the header's each find a request, for its own caller alone."""

    def __init__(self) -> None:
        self._running: dict[str, Started] = {}
        self._over: OrderedDict[str, Started] = OrderedDict()

    @contextmanager
    def running(self, ids: list[str], asks: list[str], who: Caller) -> Iterator[None]:
        """While a request runs. An id that runs already keeps its meaning."""
        started = Started(who, asks)
        own = [id for id in ids if id not in self._running]
        self._running.update(dict.fromkeys(own, started))
        try:
            yield
        finally:
            for id in own:
                del self._running[id]
                self._over[id] = started
                self._over.move_to_end(id)
            while len(self._over) > REMEMBERED:
                self._over.popitem(last=False)

    def find(self, id: str, who: Caller) -> list[str]:
        """What the engine knows a request by; nothing where the caller has none of this id."""
        started = self._running.get(id) or self._over.get(id)
        if started is None or started.who.name != who.name:
            return []
        return started.asks


@router.delete("/v1/requests/{id}")
async def cancel_request(id: str, request: Request, who: Who) -> dict[str, Any]:
    """End a request. Its client gets what was made so far."""
    asks = _asks(id, request, who)
    ended = [await request.app.state.engine.cancel(ask) for ask in asks]
    return {"id": id, "done": any(ended)}


@router.post("/v1/requests/{id}/stop_thinking")
async def stop_thinking(id: str, request: Request, who: Who) -> dict[str, Any]:
    """Close the thought of a request now, so that it answers."""
    asks = _asks(id, request, who)
    ended = [await request.app.state.engine.stop_thinking(ask) for ask in asks]
    return {"id": id, "done": any(ended)}


@router.get("/v1/requests/{id}/trace")
async def trace(id: str, request: Request, who: Who) -> dict[str, Any]:
    """What each step of a request drafted and accepted; while it runs, and for a while after."""
    traces = [await request.app.state.engine.trace(ask) for ask in _asks(id, request, who)]
    if all(one is None for one in traces):
        raise _unknown(id)
    return {"id": id, "traces": traces}


def _asks(id: str, request: Request, who: Caller) -> list[str]:
    asks: list[str] = request.app.state.requests.find(id, who)
    if not asks:
        raise _unknown(id)
    return asks


def _unknown(id: str) -> ApiError:
    said = f"request {shown(id)} is not known: it is over, or was never there"
    return ApiError(404, said, param="id", code="request_not_found")
