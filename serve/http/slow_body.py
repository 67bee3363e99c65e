"""A body that does not come is not waited for."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.serve.api.errors import ApiError


class SlowBody:
    """Ends requests whose body takes too long: each holds a place, and memory.

    Args:
        seconds: from the request's start to the end of its body.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._seconds
        whole = False

        async def in_time() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                said = f"the body was not there after {self._seconds:g} s"
                raise ApiError(408, said, code="body_timeout") from None
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self._app(scope, in_time, send)
