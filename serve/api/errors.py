"""Errors as HTTP says them: one sentence, in the shape of the protocol that was spoken."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from fastslow.engine.checked import first_wrong
from fastslow.output import GenerationError
from fastslow.serve.api.engine import Busy, NotReady

KINDS_OF_VALUE = 16  # errors that are looked at: each kind that a value might have had is one
SOON = 1.0  # seconds until a client should try again, where nobody knows better
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
BODY: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "the request does not fit, or comes too early", **BODY},
    "5XX": {"description": "the server failed, or is not ready", **BODY},
}
"""`responses` of a route, for the OpenAPI document."""


class ApiError(HTTPException):
    """An answer other than 200. message: one sentence: the field, its value, the limit. kind, param, code: OpenAI's
    `type`, `param` (the field) and `code`. retry_after: seconds, for the header of that name."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message, self.kind, self.param, self.code = message, kind, param, code
        self.status, self.retry_after = status, retry_after
        after = {} if retry_after is None else {"retry-after": str(ceil(retry_after))}
        super().__init__(status, message)
        self.headers: dict[str, str] = {**(headers or {}), **after}


Shape = Callable[[ApiError], dict[str, Any]]


def openai_shape(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    said = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": said}


def error_response(scope: Scope, error: ApiError) -> Response:
    """The answer, in the shape of the path's protocol: `app.state.error_shapes` has those of other protocols
    than OpenAI's, by the beginnings of their paths. The request's state keeps the error, for its log line."""
    scope.setdefault("state", {})["error"] = error
    shapes: Mapping[str, Shape] = getattr(scope["app"].state, "error_shapes", {})
    path = scope["path"]
    shape = next((s for start, s in shapes.items() if path.startswith(start)), openai_shape)
    return JSONResponse(shape(error), error.status, error.headers)


def refused(error: ValueError, fields: Collection[str] = ()) -> ApiError:
    """A request that does not fit. Sentences begin with the field where there is one; with `fields`, those of
    the request, whatever follows its name."""
    first = re.match(r"([a-z_]+)([=.\[:]| has |)", str(error))
    named = first is not None and (first[1] in fields or first[2] != "")
    return ApiError(400, str(error), param=first[1] if named and first is not None else None)


@contextmanager
def fitting(fields: Collection[str]) -> Iterator[None]:
    """Work on a request with these fields: where that raises ValueError, it does not fit."""
    try:
        yield
    except ValueError as error:
        raise refused(error, fields) from None


def as_api_error(error: BaseException, request_id: str) -> ApiError:
    """Any error, as clients may see it: they say nothing of the server itself."""
    match error:
        case ApiError():
            return error
        case Busy():
            return ApiError(429, str(error), "rate_limit_error", None, "busy", error.retry_after)
        case NotReady():
            return ApiError(503, str(error), "server_error", None, "not_ready", SOON)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _plain(error)
    if isinstance(error, GenerationError):
        logger.error("request {} failed: {}", request_id, error)
    else:
        logger.opt(exception=error).error("request {} failed", request_id)
    said = f"the server failed on this request; in its log that is request {request_id}"
    return ApiError(500, said, "server_error", None, "internal_error")


def _plain(error: HTTPException) -> ApiError:
    status = error.status_code
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ApiError(status, error.detail, kind, None, CODES.get(status), headers=error.headers)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first thing wrong in a body, path or query; what pydantic says of a value's kinds is said together."""
    found: list[Any] = [{**e, "loc": e["loc"][1:]} for e in error.errors()[:KINDS_OF_VALUE]]
    if found[0]["type"] == "missing" and not found[0]["loc"]:
        return ApiError(400, "the body is empty; it must be JSON")
    place, said = first_wrong(found, whole="the body")
    return ApiError(400, said, param=place[:60] or None)
