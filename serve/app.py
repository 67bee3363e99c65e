"""The FastAPI application."""

from __future__ import annotations

from fastapi import FastAPI

from fastslow.serve import health
from fastslow.serve.engine import Engine


def create_app(engine: Engine) -> FastAPI:
    """The server in front of an engine. Its routes find the engine as `request.app.state.engine`."""
    app = FastAPI(title="fastslow", docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.include_router(health.router)
    return app
