"""Errors as Anthropic's clients read them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

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


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of every answer that is an error."""

    type: Literal["error"]
    error: AnthropicErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicError, "description": "the request does not fit, or comes too early"},
    "5XX": {"model": AnthropicError, "description": "the server failed, or is not ready"},
}
"""`responses` of a route, for the OpenAPI document."""


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """An error as these clients read it."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = KINDS.get(error.status, usual)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
