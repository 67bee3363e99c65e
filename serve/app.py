"""The FastAPI application, with all that stands around its routes."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from fastslow.serve.anthropic import messages
from fastslow.serve.anthropic.messages import anthropic_shape
from fastslow.serve.api.config import ServerConfig
from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.api.errors import as_api_error, error_response
from fastslow.serve.api.keys import KeyRing, is_loopback
from fastslow.serve.api.limits import Limits
from fastslow.serve.http import requests
from fastslow.serve.http.body import TOGETHER
from fastslow.serve.http.middleware import LOOPBACK, RequestAccess, RequestWatch, request_id
from fastslow.serve.observe import health, metrics
from fastslow.serve.observe.metrics import ServerMetrics
from fastslow.serve.observe.request_log import RequestLog
from fastslow.serve.observe.request_record import Observer
from fastslow.serve.openai import chat, completions, models, responses
from fastslow.serve.openai.logprobs import TokenTable
from fastslow.serve.page import route as page

SIDES = ("limit", "remaining", "reset")
RATES = [f"x-ratelimit-{side}-{what}" for side in SIDES for what in ("requests", "tokens")]
EXPOSED = ["x-request-id", "retry-after", *RATES]  # headers that a browser's page may read
USUAL = ServerConfig()
ROUTES = (health, metrics, chat, completions, messages, responses, models, requests, page)


def create_app(
    engine: Engine,
    config: ServerConfig = USUAL,
    keys: KeyRing | None = None,
    host: str | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """The server in front of an engine. Its routes find these in `request.app.state`: `engine`, `limits`,
    `settings`, `requests` (what runs, by id), `tokens` (the bytes of tokens), `metrics` and `error_shapes`. config: of it,
    the limits of requests, whom browsers may help, what is logged and counted. keys: None = everybody is answered.
    host: that it listens on; None = a Unix socket, or unknown. observers: see every request's record at its end."""
    app = FastAPI(title="fastslow", docs_url=None, redoc_url=None)
    limits = Limits(config.max_requests)
    app.state.metrics = ServerMetrics(engine, limits, config.metrics_by_key, config.served_name)
    app.state.engine, app.state.limits = engine, limits
    app.state.settings = config.settings
    app.state.requests = requests.Requests()
    app.state.tokens = TokenTable(engine)
    app.state.error_shapes = {"/v1/messages": anthropic_shape}
    for kind in (HTTPException, RequestValidationError, Busy, NotReady):
        app.add_exception_handler(kind, _answer_error)
    # a middleware stands around those that were added before it
    app.add_middleware(
        RequestAccess,
        keys=keys,
        limits=limits,
        body_seconds=config.body_seconds,
        incoming_bytes=TOGETHER * config.settings.body_bytes,
    )
    if config.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    # a page of the web has no key; without keys only the pages that are named may use it
    origins = None if keys is not None else config.allow_origins
    hosts = allowed_hosts(config.allow_hosts, host, keys is not None)
    watchers = [app.state.metrics.take, RequestLog(config.log_texts), *observers]
    app.add_middleware(RequestWatch, observers=watchers, hosts=hosts, origins=origins)
    for module in ROUTES:
        app.include_router(module.router)
    return app


def allowed_hosts(more: Sequence[str], host: str | None, keyed: bool) -> tuple[str, ...] | None:
    """Names that a request may call the server by; None = any. On an address that only this machine reaches, without
    keys, a page on the web could reach it by a name that the page's owner chose: there only known names count. more:
    names besides its own; "*" = any. keyed: whether requests need a key."""
    alone = not keyed and host is not None and is_loopback(host)
    if "*" in more or not (alone or more):
        return None
    return (*LOOPBACK, *((host.strip("[]"),) if host else ()), *more)


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, as_api_error(error, request_id(request.scope)))
