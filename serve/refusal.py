"""An error's answer where no route was reached yet: in front of the application."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Scope, Send

from fastslow.serve.errors import ApiError

ANTHROPIC = "/v1/messages"  # what lies there speaks Anthropic's protocol
ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def body_of(error: ApiError, path: str) -> Mapping[str, Any]:
    """The JSON object that says it, in the shape of the protocol that is spoken at a path."""
    if path.startswith(ANTHROPIC):
        kind = ANTHROPIC_KINDS.get(error.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    fields = {"message": error.message, "type": error.kind, "param": error.param}
    return {"error": fields | {"code": error.code}}


async def refuse(
    scope: Scope, send: Send, error: ApiError, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with an error."""
    body = json.dumps(body_of(error, scope["path"])).encode()
    every = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if error.retry_after is not None:
        every.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": every})
    await send({"type": "http.response.body", "body": body})
