"""What a browser is told, and which addresses a request may come by."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.engine.params import shown
from fastslow.serve.api.errors import ApiError, error_response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_URL = 8 << 10  # bytes of path and query
MOST_HEADERS = 32 << 10  # bytes of all names and values
MOST_FIELDS = 100  # headers
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

HEADERS = {  # where the answer does not set them itself
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"  # for all that is no page


class Security:
    """Refuses requests that are too large at the front, or came by another name, and adds headers.

    A page on the web can make its reader's browser ask a server on the reader's own machine. Names of the
    server that it does not know (DNS rebinding) and, where no key is needed, other pages' requests are
    therefore refused.

    Args:
        hosts: names that a request may call the server by, without port; None = any.
        origins: pages that may use it from a browser, such as https://chat.example.com; None = any.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._origins = None if origins is None else frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("content-security-policy", NO_CONTENT)
                message = {**message, "headers": headers.raw}
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error_response(scope, error)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        raw = scope["headers"]
        url = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if url > MOST_URL:
            raise ApiError(414, f"the address has {url} bytes, and {MOST_URL} are the most")
        if len(raw) > MOST_FIELDS:
            raise ApiError(431, f"there are {len(raw)} headers, and {MOST_FIELDS} are the most")
        size = sum(len(name) + len(value) for name, value in raw)
        if size > MOST_HEADERS:
            raise ApiError(431, f"the headers have {size} bytes, and {MOST_HEADERS} are the most")
        headers = Headers(raw=raw)
        if (hosts := len(headers.getlist("host"))) > 1:  # others may read another one than we do
            raise ApiError(400, f"there are {hosts} Host headers; a request has one")
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            said = f"Host: {shown(host)} is no name of this server, which are {known}: --allow-host adds one"
            raise ApiError(400, said)
        self._check_origin(scope, headers.get("origin"), host)

    def _check_origin(self, scope: Scope, origin: str | None, host: str) -> None:
        if self._origins is None or origin is None or scope["method"] in SAFE:
            return
        if origin in self._origins or "*" in self._origins or _same(origin, host):
            return
        said = f"Origin: {shown(origin)} may not use this server: --allow-origin adds it, and so does a key"
        raise ApiError(403, said, "permission_error")


def host_name(host: str) -> str:
    """A Host header's name, without port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _same(origin: str, host: str) -> bool:
    """Whether an origin is the server itself."""
    return host != "" and origin.partition("://")[2].lower() == host.lower()
