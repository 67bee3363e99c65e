"""Middlewares around the routes: `RequestWatch`, and inside of it `RequestAccess`."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Sequence

from loguru import logger
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.engine.params import shown
from fastslow.serve.api.errors import ApiError, as_api_error, error_response
from fastslow.serve.api.keys import KeyRing
from fastslow.serve.api.limits import Caller, Limits
from fastslow.serve.http.body import IncomingBodies, IncomingBody
from fastslow.serve.observe.request_record import (
    CURRENT,
    UNMATCHED,
    Observer,
    RequestRecord,
    record_of,
)

VALID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HOST = re.compile(  # a name or an address, and a port
    r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([A-Za-z0-9._~!$&'()*+,;=%-]*))(?::[0-9]{0,5})?"
)
HEADER = b"x-request-id"
ANSWERED = (HEADER, b"request-id")  # as OpenAI's clients read it, and as Anthropic's do
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {  # where the answer does not set them itself
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"  # for all that is no page
# What needs no key: for health checks, scrapers and the page's first load.
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health", "/ready", "/version", "/metrics"})
BEARER = "bearer "
CHALLENGE = {"www-authenticate": "Bearer"}
CONTROL = "/v1/requests/"  # cancel and the like must work while a key has all its requests running


def request_id(scope: Scope) -> str:
    """The id of a request."""
    given: str = scope["state"]["request_id"]
    return given


class RequestWatch:
    """Gives each request an id and a record, which observers see at its end; checks what it comes with; answers
    what nobody answered; adds headers for browsers. The id is the client's `x-request-id`, where that is well-formed.
    What fails without an answer becomes one of status 500 that says no more than the id.

    A page on the web can make its reader's browser ask a server on the reader's own machine. Names of the server that
    it does not know (DNS rebinding) and, where no key is needed, other pages' requests are therefore refused. hosts:
    names that a request may call the server by, without port; None = any. origins: pages that may use it from a
    browser, such as https://chat.example.com; None = any."""

    def __init__(
        self,
        app: ASGIApp,
        observers: Sequence[Observer] = (),
        hosts: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
    ) -> None:
        self._app, self._observers = app, observers
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._origins = None if origins is None else frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == HEADER), b"").decode("latin-1")
        id = given if VALID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = id
        record, complete = record_of(scope, id), False

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                record.left = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": _with_headers(message, id)}
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                complete = True
            await send(message)

        token = CURRENT.set(record)
        try:
            with logger.contextualize(request_id=id):
                _check(scope, self._hosts, self._origins)
                await self._app(scope, watched_receive, watched_send)
        except Exception as error:
            if record.status:
                complete = True
                logger.opt(exception=error).error("request {} failed in its answer", id)
                raise
            failure = error_response(scope, as_api_error(error, id))
            await failure(scope, receive, watched_send)
        finally:
            CURRENT.reset(token)
            record.left = record.left or not complete
            self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.seconds = time.perf_counter() - record.started
        record.route = getattr(scope.get("route"), "path", None) or _route(scope)
        for observer in self._observers:
            try:
                observer(record)
            except Exception:  # noqa: BLE001 - the answer is out, and the next observer has its turn
                logger.exception("a request could not be recorded")


class RequestAccess:
    """Finds the caller of a request, as `scope["state"]["caller"]`; holds a place for it while it works;
    waits for its body no longer than is allowed. HEAD is answered as GET is, without the body. keys: None = everybody
    is let in. body_seconds: to the end of a body. incoming_bytes: of all bodies together that are not whole yet."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        limits: Limits,
        body_seconds: float = 60.0,
        incoming_bytes: float = math.inf,
    ) -> None:
        self._app, self._keys, self._limits, self._seconds = app, keys, limits, body_seconds
        self._bodies = IncomingBodies(incoming_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        works = scope["method"] == "POST" and not scope["path"].startswith(CONTROL)
        try:
            caller = scope.setdefault("state", {})["caller"] = self._caller(scope)
            left = self._limits.enter(caller) if works else {}
        except ApiError as error:
            await error_response(scope, error)(scope, receive, send)
            return
        rates = [(name.encode(), value.encode()) for name, value in left.items()]
        body = IncomingBody(receive, self._bodies, caller.share, self._seconds)
        head = scope["method"] == "HEAD"

        async def send_with_rates(message: Message) -> None:
            if rates and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *rates]}
            elif head and "body" in message:
                message = {**message, "body": b""}
            await send(message)

        try:
            inner = {**scope, "method": "GET"} if head else scope
            await self._app(inner, body.receive, send_with_rates)
        finally:
            self._bodies.remove(body)
            if works:
                self._limits.leave(caller)

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None:
            return Caller(address=(scope.get("client") or ("",))[0])
        sent = sent_key(Headers(scope=scope))
        found = None if sent is None else self._keys.find(sent)
        if found is not None:
            return Caller.of(found)
        if scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return Caller()
        said = "no API key was sent" if sent is None else "the API key is not known"
        message = f"{said}: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'"
        raise ApiError(401, message, code="invalid_api_key", headers=CHALLENGE)


def sent_key(headers: Headers) -> str | None:
    """The key in a request's headers; OpenAI's clients send the first kind, Anthropic's the second."""
    bearer = headers.get("authorization", "")
    if bearer[: len(BEARER)].lower() == BEARER:
        return bearer[len(BEARER) :].strip()
    return headers.get("x-api-key")


def _with_headers(message: Message, id: str) -> list[tuple[bytes, bytes]]:
    own = [(header, id.encode()) for header in ANSWERED]
    headers = MutableHeaders(raw=[*message.get("headers", ()), *own])
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", NO_CONTENT)
    return headers.raw


def _check(scope: Scope, hosts: frozenset[str] | None, origins: frozenset[str] | None) -> None:
    """Refuse what came by another name, or from another page."""
    headers = Headers(scope=scope)
    if (count := len(headers.getlist("host"))) > 1:  # others may read another one than we do
        raise ApiError(400, f"there are {count} Host headers; a request has one")
    host, origin = headers.get("host", ""), headers.get("origin")
    written = HOST.fullmatch(host)
    if written is None:
        raise ApiError(400, f"Host: {shown(host)} is no name or address with a port")
    if hosts is not None and (written[1] or written[2] or "").lower() not in hosts:
        known = ", ".join(sorted(hosts))
        said = f"Host: {shown(host)} is no name of this server, which are {known}: --allow-host adds one"
        raise ApiError(400, said)
    if origins is None or origin is None or scope["method"] in SAFE:
        return
    if not (origin in origins or "*" in origins or _same(origin, host)):
        said = f"Origin: {shown(origin)} may not use this server: --allow-origin adds it, and so does a key"
        raise ApiError(403, said, "permission_error")


def _same(origin: str, host: str) -> bool:
    """Tell whether an origin is the server itself."""
    return host != "" and origin.partition("://")[2].lower() == host.lower()


def _route(scope: Scope) -> str:
    """The route of a request that was answered before it came there."""
    known = scope["app"].openapi()["paths"] if "app" in scope else ()
    return scope["path"] if scope["path"] in known else UNMATCHED
