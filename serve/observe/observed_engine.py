"""The engine as routes see it: what it does for a request is noted in the request's record."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import Busy, Engine, NotReady
from fastslow.serve.api.limits import Limits
from fastslow.serve.engines.wrapped_engine import WrappedEngine
from fastslow.serve.observe.request_record import CURRENT, AnswerRecord, tokens_of


class ObservedEngine(WrappedEngine):
    """An `Engine` in front of another, for the HTTP request that runs: its record gets an `AnswerRecord` for each
    ask, and its caller's limits count the tokens."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        super().__init__(engine)
        self._limits = limits

    @property
    def _model(self) -> str:
        try:
            return self.engine.card.name
        except NotReady:
            return ""

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        record = CURRENT.get()
        answer = AnswerRecord(ask, time.perf_counter(), self._model)
        if record is not None:
            record.answers.append(answer)
        latest: dict[int, float] = {}
        try:
            async with aclosing(self.engine.stream(ask)) as pieces:
                async for piece in pieces:
                    _note(answer, piece, latest)
                    yield piece
        except Exception as error:
            answer.failed = _reason(error)
            raise
        finally:
            if record is not None:
                self._limits.spend(record.caller, sum(tokens_of(answer)))


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


def _reason(error: Exception) -> str:
    """What failed, in a word."""
    match error:
        case Busy():
            return "busy"
        case NotReady():
            return "not_ready"
        case ValueError():
            return "invalid"
    return "error"
