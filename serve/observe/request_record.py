"""Record of an HTTP request, as logs, metrics and spans see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from fastslow.output import Output
from fastslow.serve.api.errors import ApiError
from fastslow.serve.api.limits import Caller

METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})
OTHER, UNMATCHED = "other", "unmatched"


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


CURRENT: ContextVar[RequestRecord] = ContextVar("fastslow_request")
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
