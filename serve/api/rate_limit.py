"""Every request takes a place before its body is read, and gives it back whatever happens."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.serve.api.caller import Caller
from fastslow.serve.api.errors import ApiError, error_response
from fastslow.serve.api.limits import Limits

CONTROL = "/v1/requests/"  # cancel and the like must work while a key has all its requests running


class RateLimit:
    """Holds a `Slot` while a request that asks for work is answered."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _asks_for_work(scope):
            await self._app(scope, receive, send)
            return
        caller = scope.get("state", {}).get("caller") or Caller()
        try:
            slot = self._limits.enter(caller)
        except ApiError as error:
            await error_response(scope, error)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_raw(slot.headers)]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers if slot.headers else send)
        finally:
            slot.give_back()


def _asks_for_work(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] == "POST"
        and not scope["path"].startswith(CONTROL)
    )


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
