"""Bodies of requests: JSON, of a bounded size, depth and range of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.errors import ERRORS, ApiError

EXACT = 2**53  # below it floats hold every whole number


class JsonRequest(Request):
    """A request whose body is read up to a limit, and then as strict JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            most = self._settings.body_bytes
            self._check_type()
            chunks, size = [], 0
            async for chunk in self.stream():
                size += len(chunk)
                if size > most:
                    said = f"the body has more than {most} bytes"
                    raise ApiError(413, said, code="body_too_large")
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            most = self._settings.json_depth, self._settings.json_parts
            self._json = read_json(await self.body(), *most)
        return self._json

    @property
    def _settings(self) -> ServerSettings:
        settings: ServerSettings = self.app.state.settings
        return settings

    def _check_type(self) -> None:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            said = f"content-type={shown(kind)} must be 'application/json'"
            raise ApiError(400, said, code="wrong_content_type")
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(400, "content-encoding must be left out: bodies are not compressed here")


class JsonRoute(APIRoute):
    """A route that reads its body as `JsonRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return strict


def json_router() -> APIRouter:
    """A router for routes with JSON bodies, whose errors are in the OpenAPI document."""
    return APIRouter(route_class=JsonRoute, responses=ERRORS)


def read_json(data: bytes, depth: int, parts: int) -> Any:
    """JSON as the standard has it, with finite numbers."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _no_json(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg.lower()} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep(depth) from None
    except ValueError:  # Python's own limit of digits
        raise _no_json("a number has too many digits") from None
    _check_size(value, depth, parts)
    if b"\\u" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise _no_json(
                "a text holds a lone surrogate (\\ud800 to \\udfff), which is no character"
            ) from None
    return value


def _check_size(value: Any, deepest: int, most: int) -> None:
    """Refuse what nests too deep, or holds too many lists and objects to be looked at."""
    level, depth, count = [value], 0, 0
    while level:
        if depth > deepest:
            raise _too_deep(deepest)
        count += len(level)
        if count > most:
            said = f"the body has more than {most} lists and objects"
            raise ApiError(413, said, code="body_too_large")
        level = [
            part
            for one in level
            if isinstance(one, list | dict)
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, list | dict)
        ]
        depth += 1


def _no_number(name: str) -> NoReturn:
    raise _no_json(f"{name} is no number in JSON")


def _finite(digits: str) -> float:
    """A number; 2.0 is the whole number 2, as in JSON Schema."""
    value = float(digits)
    if not math.isfinite(value):
        raise _no_json(f"the number {shown(digits)} is too large")
    return int(value) if value.is_integer() and abs(value) < EXACT else value


def _no_json(why: str) -> ApiError:
    return ApiError(400, f"the body is no JSON that can be read: {why}", code="invalid_json")


def _too_deep(most: int) -> ApiError:
    return _no_json(f"it nests deeper than {most} levels")
