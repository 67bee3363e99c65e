"""API keys are checked before anything of a request is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fastslow.serve.api.caller import Caller
from fastslow.serve.api.errors import ApiError, error_response
from fastslow.serve.api.keys import KeyRing

# Without a key, whoever asks: what health checks, scrapers and the page's first load need. All else needs one.
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health", "/ready", "/version", "/metrics"})
BEARER = "bearer "
CHALLENGE = {"www-authenticate": "Bearer"}


class Authentication:
    """Finds the caller of a request, as `scope["state"]["caller"]`, or answers 401.

    Args:
        keys: None = everybody may ask.
        open_paths: served to everybody.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing | None, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self._app, self._keys, self._open = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys is not None:
            try:
                caller = self._caller(scope, self._keys)
            except ApiError as error:
                await error_response(scope, error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        elif scope["type"] == "websocket" and self._keys is not None:
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope, keys: KeyRing) -> Caller:
        sent = sent_key(Headers(scope=scope))
        found = None if sent is None else keys.find(sent)
        if found is not None:
            return Caller.of(found)
        if scope["path"] in self._open or scope["method"] == "OPTIONS":
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
