"""The FastAPI application."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fastslow.serve.anthropic import messages
from fastslow.serve.anthropic.errors import anthropic_shape
from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.api.errors import as_api_error, error_response
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.http.head_requests import HeadRequests
from fastslow.serve.http.operations import OperationSettings, install_operations
from fastslow.serve.http.request_id import RequestIds, request_id
from fastslow.serve.http.requests import Requests
from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.observe import health
from fastslow.serve.openai import chat, completions, models, requests, responses, tokenize
from fastslow.serve.page import route as page

ROUTERS = (
    health.router,
    chat.router,
    completions.router,
    messages.router,
    responses.router,
    models.router,
    tokenize.router,
    requests.router,
    page.router,
)


def create_app(
    engine: Engine,
    settings: ServerSettings | None = None,
    operations: OperationSettings | None = None,
) -> FastAPI:
    """The server in front of an engine. Its routes find these in `request.app.state`: `engine`, `settings`,
    `requests` (what runs, by id), `tokens` (the bytes of tokens) and `error_shapes`."""
    app = FastAPI(title="fastslow", docs_url=None, redoc_url=None)
    app.add_middleware(HeadRequests)
    engine = install_operations(app, engine, operations or OperationSettings())
    app.state.engine = engine
    app.state.settings = settings or ServerSettings()
    app.state.requests = Requests()
    app.state.tokens = TokenTable(engine)
    app.state.error_shapes = {"/v1/messages": anthropic_shape}
    for kind in (HTTPException, RequestValidationError, Busy, NotReady):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(RequestIds)
    for router in ROUTERS:
        app.include_router(router)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, as_api_error(error, request_id(request.scope)))
