"""Whether the server lives, whether it takes requests, and what runs in it."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import fastslow
from fastslow.serve.api.engine import Engine, NotReady

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether the engine takes requests."""

    ready: bool
    why: str = ""  # not


class Versions(BaseModel):
    """What runs. Model and device are null until the model is loaded."""

    fastslow: str
    torch: str
    python: str
    model: str | None
    device: str | None


@router.get("/health")
async def health() -> Health:
    """200 as long as the server's process lives, also while the engine loads or is started again."""
    return Health()


@router.get(
    "/ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "It loads, drains, or is started again."}},
)
async def ready(request: Request) -> JSONResponse:
    """200 where a request would be taken now, else 503 and why not: for load balancers."""
    engine: Engine = request.app.state.engine
    if engine.ready:
        return JSONResponse(Readiness(ready=True).model_dump())
    told = Readiness(ready=False, why=engine.why_not_ready)
    return JSONResponse(told.model_dump(), 503, {"retry-after": "1"})


@router.get("/version")
async def versions(request: Request) -> Versions:
    """Versions of fastslow, torch and Python, the model's name and its device."""
    engine: Engine = request.app.state.engine
    model = device = None
    with suppress(NotReady):
        model, device = engine.card.name, engine.card.device
    return Versions(
        fastslow=fastslow.__version__,
        torch=version("torch"),
        python=platform.python_version(),
        model=model,
        device=device,
    )
