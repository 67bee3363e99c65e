"""Errors as Anthropic's clients read them."""

from __future__ import annotations

from typing import Any

from fastslow.serve.api.errors import ApiError

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """The body of an answer that is an error."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = KINDS.get(error.status, usual)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
