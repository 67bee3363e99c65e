"""/v1/requests: what runs can be ended, brought to its answer, and looked into."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from fastslow.engine.params import shown
from fastslow.serve.api.caller import Caller, caller
from fastslow.serve.api.errors import ApiError
from fastslow.serve.http.body import json_router

router = json_router()
Who = Annotated[Caller, Depends(caller)]


class Done(BaseModel):
    """What came of it."""

    id: str
    done: bool


class Trace(BaseModel):
    """What each step did, for each prompt of the request."""

    id: str
    traces: list[Any]


@router.delete("/v1/requests/{id}")
async def cancel_request(id: str, request: Request, who: Who) -> Done:
    """End a request. Its client gets what was made so far."""
    asks = _asks(id, request, who)
    ended = [await request.app.state.engine.cancel(ask) for ask in asks]
    return Done(id=id, done=any(ended))


@router.post("/v1/requests/{id}/stop_thinking")
async def stop_thinking(id: str, request: Request, who: Who) -> Done:
    """Close the thought of a request now, so that it answers."""
    asks = _asks(id, request, who)
    ended = [await request.app.state.engine.stop_thinking(ask) for ask in asks]
    return Done(id=id, done=any(ended))


@router.get("/v1/requests/{id}/trace")
async def trace(id: str, request: Request, who: Who) -> Trace:
    """What each step of a request drafted and accepted; while it runs, and for a while after."""
    traces = [await request.app.state.engine.trace(ask) for ask in _asks(id, request, who)]
    if all(one is None for one in traces):
        raise _unknown(id)
    return Trace(id=id, traces=traces)


def _asks(id: str, request: Request, who: Caller) -> list[str]:
    asks: list[str] = request.app.state.requests.find(id, who)
    if not asks:
        raise _unknown(id)
    return asks


def _unknown(id: str) -> ApiError:
    said = f"request {shown(id)} is not known: it is over, or was never there"
    return ApiError(404, said, param="id", code="request_not_found")
