"""Bodies of requests: JSON, of a bounded size, depth and range of numbers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import accumulate
from typing import Any, NoReturn

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from fastslow.engine.fair_table import FairTable
from fastslow.engine.params import shown
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.errors import ERRORS, SOON, ApiError

EXACT = 2**53  # below it floats hold every whole number
TOGETHER = 16  # bodies of the largest size, whose bytes may be here before they are whole
PIECE = 64 * 1024  # bytes that are looked at together
OPENING, BRACKETS = b"[{", b"[]{}"
PARTS = b"[{:.eE"  # of lists, objects, names, and numbers that are no digits alone: the dearest
NO_BRACKETS = bytes(one for one in range(256) if one not in BRACKETS)
DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
LONG_NUMBER = b"0" * 100  # the time for a number grows with the square of its digits


class JsonRequest(Request):
    """A request whose body is read up to a limit, and then as strict JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            most = self._settings.body_bytes
            self._check_type()
            said = f"the body has more than {most} bytes"
            declared = self.headers.get("content-length", "")
            if declared.isdecimal() and int(declared) > most:
                raise ApiError(413, said, code="body_too_large")
            chunks, size, held = [], 0, JsonCount(self._settings)
            refusal: ApiError | None = None
            async for chunk in self.stream():
                size += len(chunk)
                if size > most:
                    raise ApiError(413, said, code="body_too_large")
                if refusal is None:
                    try:
                        held.add(chunk)
                        chunks.append(chunk)
                    except ApiError as error:
                        refusal, chunks = error, []
            if refusal is not None:  # many clients read no answer before they sent all
                raise refusal
            held.end()
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        data = await self.body()
        self._body = b""  # it is read once, and the answer may take minutes
        value = read_json(data)
        if len(data) > PIECE:
            await asyncio.sleep(0)  # others have their turn before its fields are checked
        return value

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


class IncomingBody:
    """A body as it comes, within its seconds and the bytes of all. receive: of the request's scope. bodies: all that
    come. share: whose it is. seconds: from now to its end."""

    def __init__(
        self, receive: Receive, bodies: IncomingBodies, share: str | None, seconds: float
    ) -> None:
        self._receive, self._bodies, self._seconds = receive, bodies, seconds
        self.share, self.size = share, 0
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._timeout: asyncio.Timeout | None = None
        self._whole = self._given_up = False

    async def receive(self) -> Message:
        """As the scope's. Raises ApiError where the time is over, or others need the room."""
        if self._whole:
            return await self._receive()
        message: Message | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline) as self._timeout:
                message = await self._receive()
        if self._given_up:
            said = "the server holds too many unfinished bodies, and this client has most of them"
            raise ApiError(503, said, "server_error", None, "server_busy", SOON)
        if message is None:
            said = f"the body was not there after {self._seconds:g} s"
            raise ApiError(408, said, code="body_timeout")
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._whole:
            self._bodies.remove(self)
        else:
            self.size += len(message.get("body", b""))
            self._bodies.add(self)
        return message

    def give_up(self) -> None:
        """Let go of what came."""
        self._given_up = True
        if self._timeout is not None:
            with suppress(RuntimeError):  # nobody waits for more of it
                self._timeout.reschedule(0)


class IncomingBodies:
    """The bodies that are not whole yet. Where they have more than `most` bytes together, those of the share that has
    most of them are given up: that one first which was silent for longest."""

    def __init__(self, most: float) -> None:
        self._bodies = FairTable[IncomingBody, IncomingBody](most)

    def add(self, body: IncomingBody) -> None:
        """A further piece came."""
        for one in self._bodies.put(body.share, body, body, body.size):
            one.give_up()

    def remove(self, body: IncomingBody) -> None:
        """It is whole, or its request is over."""
        self._bodies.pop(body.share, body)


class JsonCount:
    """Counts what JSON holds while its bytes come: while it is parsed, the event loop stands still. It looks at the
    marks outside of texts. As far as the bytes are JSON, these are the marks that a parser meets. Raises ApiError for
    what nests too deep, or holds too much to be looked at."""

    def __init__(self, settings: ServerSettings) -> None:
        self._most = settings
        self._data = b""  # that was not looked at
        self._in_text = False
        self._texts = self._level = self._parts = self._commas = 0

    def add(self, data: bytes) -> None:
        """Bytes that follow those before."""
        self._data += data
        if len(self._data) >= PIECE:
            self.end()

    def end(self) -> None:
        """Look at all that came."""
        parts, values = self._most.json_parts, self._most.json_values
        data = self._data
        cut = (len(data) - len(data.rstrip(b"\\"))) % 2  # a mark that belongs to the next byte
        self._data = data[len(data) - cut :]
        plain = data[: len(data) - cut].replace(b"\\\\", b"").replace(b'\\"', b"")
        quotes = plain.count(b'"')
        self._texts += quotes
        if self._texts > 2 * (parts + values):  # each text is a name or a value
            raise _too_many(values, "values")
        outside = b"".join(plain.split(b'"')[self._in_text :: 2])
        self._in_text ^= quotes % 2 == 1
        brackets = outside.translate(None, NO_BRACKETS)[: 2 * parts]
        steps = (1 if bracket in OPENING else -1 for bracket in brackets)
        *_, self._level = levels = [*accumulate(steps, initial=self._level)]
        if max(levels) > self._most.json_depth:
            raise _no_json(f"it nests deeper than {self._most.json_depth} levels")
        self._parts += len(outside) - len(outside.translate(None, PARTS))
        self._commas += outside.count(b",")
        if self._parts > parts:
            raise _too_many(parts, "lists, objects, names, fractions and truth values")
        if self._commas >= values:
            raise _too_many(values, "values")
        if LONG_NUMBER in outside.translate(DIGITS):
            raise _no_json("a number has too many digits")


def read_json(data: bytes) -> Any:
    """JSON as the standard has it, with finite numbers, of bytes that `JsonCount` let through."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _no_json(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg.lower()} at character {error.pos}") from None
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            why = "a text holds a lone surrogate (\\ud800 to \\udfff), which is no character"
            raise _no_json(why) from None
    return value


def _too_many(most: int, what: str) -> ApiError:
    return ApiError(413, f"the body has more than {most} {what}", code="body_too_large")


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
