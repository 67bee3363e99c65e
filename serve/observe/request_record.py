"""Record of an HTTP request, as logs, metrics and spans see it, and the engine that fills it in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from fastslow.output import Output, Piece
from fastslow.serve.api.engine import Busy, Engine, NotReady, WrappedEngine
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Caller, Limits

METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})
OTHER, UNMATCHED = "other", "unmatched"
PATIENCE = 2.0  # seconds that the engine has to count the tokens of a prompt


@dataclass(slots=True)
class AnswerRecord:
    """Record of one request of the engine. Times are `time.perf_counter()`."""

    id: str
    prompt: Any
    started: float
    model: str = ""  # its name; "" before it is loaded
    first: float | None = None  # when its first token came
    last: float | None = None
    gaps: list[float] = field(default_factory=list)  # seconds between pieces of one answer
    sent: int = 0  # tokens in pieces
    prompt_tokens: int = 0  # where its client left
    output: Output | None = None  # None: it was left or failed before its end
    failed: str | None = None  # busy, not_ready, invalid, refused, error


def tokens_of(answer: AnswerRecord) -> tuple[int, int]:
    """Tokens of a prompt and of its answers; of an answer without an end, those that were sent."""
    if answer.output is None:
        return answer.prompt_tokens, answer.sent
    choices = answer.output.choices
    return len(answer.output.prompt_token_ids), sum(len(one.token_ids) for one in choices)


@dataclass(slots=True)
class RequestRecord:
    """Record of an HTTP request; it is whole when the answer is over."""

    id: str
    method: str
    path: str
    client: str
    started: float  # time.perf_counter()
    started_at: int  # nanoseconds since 1970
    trace_headers: dict[str, str] = field(default_factory=dict)  # of a trace that the client began
    state: dict[str, Any] = field(default_factory=dict)  # the scope's, where the caller is found
    route: str = UNMATCHED  # the path's template: there are few of them
    status: int = 0  # 0: nothing was sent
    seconds: float = 0.0
    left: bool = False  # the client went away before the answer's end
    answers: list[AnswerRecord] = field(default_factory=list)

    @property
    def caller(self) -> Caller:
        found = self.state.get("caller")
        return found if isinstance(found, Caller) else Caller()

    @property
    def error(self) -> ApiError | None:
        """The error that was sent instead of an answer; None: there was none."""
        found = self.state.get("error")
        return found if isinstance(found, ApiError) else None


CURRENT: ContextVar[RequestRecord | None] = ContextVar("fastslow_request", default=None)
Observer = Callable[[RequestRecord], None]


def record_of(scope: Scope, id: str) -> RequestRecord:
    """The record of a request that begins now."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    return RequestRecord(
        id=id,
        method=scope["method"] if scope["method"] in METHODS else OTHER,
        path=scope["path"],
        client=client[0] if client else "",
        started=time.perf_counter(),
        started_at=time.time_ns(),
        state=scope["state"],
        trace_headers={k: headers[k] for k in ("traceparent", "tracestate") if k in headers},
    )


class ObservedEngine(WrappedEngine):
    """An `Engine` in front of another, for the HTTP request that runs: its record gets an `AnswerRecord` for each
    prompt, and its caller's limits count the tokens."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        super().__init__(engine)
        self._limits = limits

    @property
    def _model(self) -> str:
        try:
            return self.engine.card.name
        except NotReady:
            return ""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        record, reserved = CURRENT.get(), 0
        if record is not None and record.caller.limits.tokens_per_minute is not None:
            reserved = self._limits.reserve(record.caller, request, self.engine.card)
        answer = AnswerRecord(request.id, request.prompt, time.perf_counter(), self._model)
        if record is not None:
            record.answers.append(answer)
        latest: dict[int, float] = {}
        try:
            async with aclosing(self.engine.stream(request)) as pieces:
                async for piece in pieces:
                    _note(answer, piece, latest)
                    yield piece
        except Exception as error:
            kinds = ((Busy, "busy"), (NotReady, "not_ready"), (ValueError, "invalid"))
            answer.failed = next((said for kind, said in kinds if isinstance(error, kind)), "error")
            raise
        finally:
            if answer.output is None and answer.failed is None:
                answer.prompt_tokens = await self._prompt_tokens(request)
            if record is not None:
                self._limits.spend(record.caller, sum(tokens_of(answer)), reserved)

    async def _prompt_tokens(self, request: GenerateRequest) -> int:
        """Of a request whose client left: the engine says them with the end alone."""
        with suppress(Exception):  # it is gone, or hangs
            async with asyncio.timeout(PATIENCE):
                return len(await self.engine.tokenize(request))
        return 0


def _note(answer: AnswerRecord, piece: Piece, latest: dict[int, float]) -> None:
    if piece.token_ids:
        now = time.perf_counter()
        if answer.first is None:
            answer.first = now
        if piece.index in latest:
            answer.gaps.append(now - latest[piece.index])
        latest[piece.index] = answer.last = now
        answer.sent += len(piece.token_ids)
    if piece.output is not None:
        answer.output = piece.output
        if answer.first is None and any(choice.token_ids for choice in piece.output.choices):
            # it was not streamed: the engine says when its first token was there
            answer.last = time.perf_counter()
            waited = min(choice.metrics.ttft for choice in piece.output.choices)
            answer.first = min(answer.started + waited, answer.last)
