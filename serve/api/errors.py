"""Errors as HTTP says them: one sentence, in the shape of the protocol that was spoken."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from fastslow.engine.params import shown
from fastslow.output import GenerationError
from fastslow.serve.api.engine import Busy, NotReady

KINDS_OF_VALUE = 16  # errors that are looked at: each kind that a value might have had is one
SOON = 1.0  # seconds until a client should try again, where nobody knows better
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
OBJECT = "be a valid dictionary or object to extract fields from"  # as pydantic says it
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
    found = error.errors()[:KINDS_OF_VALUE]
    path, value = _place(found[0]["loc"], error.body)
    if found[0]["type"] == "missing":
        said = f"field {path!r} is missing" if path else "the body is empty; it must be JSON"
        return ApiError(400, said, param=path or None)
    if found[0]["type"] == "extra_forbidden":
        return ApiError(400, f"field {shown(path)} is unknown", param=path[:60])
    same = [one for one in found if _place(one["loc"], error.body)[0] == path]
    limits = [_limit(str(one["msg"])) for one in same]
    if any(limit is None for limit in limits):
        said = next(str(one["msg"]) for one, limit in zip(same, limits) if limit is None)
        return ApiError(400, said.removeprefix("Value error, "), param=path or None)
    name = path[:60] or "the body"
    limit = " or ".join(dict.fromkeys(filter(None, limits))).replace(" or be ", " or ")
    return ApiError(400, f"{name}={shown(value)} must {limit}", param=path or None)


def _place(loc: Sequence[int | str], body: object) -> tuple[str, object]:
    """Return the place of an error without parts that name a kind, "messages[0].content", and the value there."""
    path, value = "", body
    start = 1 if loc and loc[0] in ("body", "query", "path", "header") else 0
    within = bool(loc) and loc[0] == "body"
    for part in loc[start:]:
        if isinstance(part, int):
            if isinstance(value, list) and part < len(value):
                path, value = f"{path}[{part}]", value[part]
        elif not within or (isinstance(value, dict) and part in value):
            named = f".{part}" if re.fullmatch(r"\w{1,64}", part) else f"[{shown(part)}]"
            path, value = f"{path}{named}".lstrip("."), value[part] if within else part  # type: ignore[index]
        elif part.isidentifier() and loc[-1] == part and isinstance(value, dict):
            path = f"{path}.{part}".lstrip(".")  # what is missing
    return path, value


def _limit(said: str) -> str | None:
    """Return what a value must be, as "be an object"; None: its own sentence says it."""
    _, should, limit = said.partition(" should ")
    if not should:
        return None
    return "be an object" if limit == OBJECT else limit.partition(" after validation")[0]
