"""Routes that say whether the server lives, whether it takes requests, and what runs in it."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

import fastslow
from fastslow.serve.api.engine import Engine, NotReady
from fastslow.serve.api.errors import BODY

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """200 as long as the server's process lives, also while the engine loads or is started again."""
    return {"status": "ok"}


@router.get(
    "/ready",
    response_model=None,
    responses={
        503: {"description": "The model loads, the server drains, or the engine restarts.", **BODY}
    },
)
async def ready(request: Request) -> JSONResponse:
    """200 where a request would be taken now, else 503 and why not: for load balancers."""
    engine: Engine = request.app.state.engine
    if engine.ready:
        return JSONResponse({"ready": True, "why": ""})
    return JSONResponse({"ready": False, "why": engine.why_not_ready}, 503, {"retry-after": "1"})


@router.get("/version")
async def versions(request: Request) -> dict[str, str | None]:
    """Versions of fastslow, torch and Python; the model's name and its device, null until it is loaded."""
    engine: Engine = request.app.state.engine
    model = device = None
    with suppress(NotReady):
        model, device = engine.card.name, engine.card.device
    return {
        "fastslow": fastslow.__version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "model": model,
        "device": device,
    }
