"""Every request has an id, its client's or a new one, and no error leaves a request without an answer."""

from __future__ import annotations

import re
import secrets

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.serve.api.errors import as_api_error, error_response

VALID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HEADER = b"x-request-id"
ANSWERED = (HEADER, b"request-id")  # as OpenAI's clients read it, and as Anthropic's do


def request_id(scope: Scope) -> str:
    """The id of a request."""
    given: str = scope["state"]["request_id"]
    return given


class RequestIds:
    """Takes the header `x-request-id`, where it is well-formed, and gives it back in every answer.

    Whatever fails without an answer becomes one of status 500 that tells no more than the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == HEADER), b"").decode("latin-1")
        name = given if VALID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = name
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(header, name.encode()) for header in ANSWERED]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception as error:
            if started:
                logger.opt(exception=error).error("request {} failed in its answer", name)
                raise
            await error_response(scope, as_api_error(error, name))(scope, receive, named)
