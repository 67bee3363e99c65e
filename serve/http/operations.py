"""What stands around the application: keys, limits, metrics, the log of requests, and what browsers are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from fastslow.serve.api.authentication import OPEN_PATHS, Authentication
from fastslow.serve.api.engine import Engine
from fastslow.serve.api.keys import KeyRing, is_loopback
from fastslow.serve.api.limits import Limits
from fastslow.serve.api.rate_limit import RateLimit
from fastslow.serve.http.security import LOOPBACK, Security
from fastslow.serve.http.slow_body import SlowBody
from fastslow.serve.observe import metrics
from fastslow.serve.observe.metrics import ServerMetrics
from fastslow.serve.observe.observed_engine import ObservedEngine
from fastslow.serve.observe.request_log import RequestLog
from fastslow.serve.observe.request_record import Observer, RequestRecords

TOLD = (  # headers that a browser's page may read
    *("x-request-id", "retry-after"),
    *(
        f"x-ratelimit-{side}-{what}"
        for side in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
)


@dataclass(frozen=True, slots=True)
class OperationSettings:
    """How a server is run.

    Attributes:
        keys: whom it answers; None = everybody.
        host: that it listens on; None = a Unix socket, or unknown.
        model: what clients call the model, for metrics before it is loaded.
        concurrent: requests at the same time, of all callers together; None = no limit.
        body_seconds: that a request's body may take to come.
        allow_origins: pages of other addresses that browsers may let use it; ("*",) = all.
        allow_hosts: names it may be called by besides its own; ("*",) = any.
        log_texts: whether prompts and answers are logged.
        metrics_by_key: whether metrics tell keys apart.
        open_paths: for which no key is needed.
        observers: are shown every request's record at its end, as for traces.
        lost_lines: (), how many lines the log lost; as it is, none.
    """

    keys: KeyRing | None = None
    host: str | None = None
    model: str = ""
    concurrent: int | None = None
    body_seconds: float = 60.0
    allow_origins: Sequence[str] = ()
    allow_hosts: Sequence[str] = ()
    log_texts: bool = False
    metrics_by_key: bool = False
    open_paths: frozenset[str] = OPEN_PATHS
    observers: Sequence[Observer] = ()
    lost_lines: Callable[[], int] = int

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names that a request may call the server by; None = any. On an address that only this machine reaches,
        without keys, a page on the web could reach it by a name of its own: only known names count there."""
        if "*" in self.allow_hosts:
            return None
        alone = self.keys is None and self.host is not None and is_loopback(self.host)
        if not (alone or self.allow_hosts):
            return None
        own = (self.host.strip("[]"),) if self.host else ()
        return (*LOOPBACK, *own, *self.allow_hosts)

    @property
    def origins(self) -> tuple[str, ...] | None:
        """Pages that may ask for work; None = any, since a key is needed, which they do not have."""
        return None if self.keys is not None else tuple(self.allow_origins)


def install_operations(app: FastAPI, engine: Engine, settings: OperationSettings) -> Engine:
    """Put it around an application.

    Middlewares that are added later stand outside of these. What is nearest to the network comes last here.

    Returns:
        The engine that routes are to use.
    """
    limits = Limits(settings.concurrent)
    app.state.metrics = ServerMetrics(
        engine, limits, settings.metrics_by_key, settings.model, settings.lost_lines
    )
    app.include_router(metrics.router)
    app.add_middleware(SlowBody, seconds=settings.body_seconds)
    app.add_middleware(RateLimit, limits=limits)
    app.add_middleware(Authentication, keys=settings.keys, open_paths=settings.open_paths)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(TOLD),
        )
    app.add_middleware(Security, hosts=settings.hosts, origins=settings.origins)
    observers = [app.state.metrics.take, RequestLog(settings.log_texts), *settings.observers]
    app.add_middleware(RequestRecords, observers=observers)
    return ObservedEngine(engine, limits)
