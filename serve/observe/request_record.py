"""One HTTP request as logs, metrics and traces tell of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastslow.output import Output
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.caller import Caller

METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})
OTHER, UNMATCHED = "other", "unmatched"


@dataclass(slots=True)
class AnswerRecord:
    """One ask of the engine. Times are `time.perf_counter()`."""

    ask: Ask
    started: float
    model: str = ""  # its name; "" before it is loaded
    first: float | None = None  # when its first token came
    last: float | None = None
    gaps: list[float] = field(default_factory=list)  # seconds between pieces of one answer
    sent: int = 0  # tokens in pieces
    output: Output | None = None  # None: it was left or failed before its end
    failed: str | None = None  # busy, not_ready, invalid, refused, error


def tokens_of(answer: AnswerRecord) -> tuple[int, int]:
    """Tokens of a prompt and of its answers; of answers that nobody waited for, those that were sent."""
    if answer.output is None:
        return 0, answer.sent
    choices = answer.output.choices
    return len(answer.output.prompt_token_ids), sum(len(one.token_ids) for one in choices)


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request; it is whole when the answer is over."""

    id: str
    method: str
    path: str
    client: str
    started: float  # time.perf_counter()
    started_at: int  # nanoseconds since 1970
    traceparent: str | None = None
    tracestate: str | None = None
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


CURRENT: ContextVar[RequestRecord | None] = ContextVar("fastslow_request", default=None)
Observer = Callable[[RequestRecord], None]


class RequestRecords:
    """Keeps a record of every request and shows it to observers at the end.

    An observer that raises is logged; it changes no answer.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer] = ()) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _begin(scope)
        complete = False

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                record.left = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                complete = True
            await send(message)

        token = CURRENT.set(record)
        raised = False
        try:
            with logger.contextualize(request_id=record.id):
                await self._app(scope, watched_receive, watched_send)
        except Exception:
            raised = True
            record.status = record.status or 500  # as it is answered further out
            raise
        finally:
            CURRENT.reset(token)
            record.left = record.left or not (complete or raised)
            self._end(record, scope)

    def _end(self, record: RequestRecord, scope: Scope) -> None:
        record.seconds = time.perf_counter() - record.started
        record.route = getattr(scope.get("route"), "path", None) or self._refused_at(scope)
        for observer in self._observers:
            try:
                observer(record)
            except Exception:  # noqa: BLE001 - the answer is out, and the next observer has its turn
                logger.exception("a request could not be recorded")

    @staticmethod
    def _refused_at(scope: Scope) -> str:
        """The route of a request that was answered before it came there."""
        known = scope["app"].openapi()["paths"] if "app" in scope else ()
        return scope["path"] if scope["path"] in known else UNMATCHED


def _begin(scope: Scope) -> RequestRecord:
    headers = Headers(scope=scope)
    client, state = scope.get("client"), scope.setdefault("state", {})
    return RequestRecord(
        id=state.get("request_id") or f"req-{secrets.token_hex(12)}",
        method=scope["method"] if scope["method"] in METHODS else OTHER,
        path=scope["path"],
        client=client[0] if client else "",
        started=time.perf_counter(),
        started_at=time.time_ns(),
        state=state,
        traceparent=headers.get("traceparent"),
        tracestate=headers.get("tracestate"),
    )
