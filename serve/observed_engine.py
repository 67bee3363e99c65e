"""The engine as routes see it: with the caller's limits, and a record of what it did."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastslow.output import Piece
from fastslow.serve.ask import Ask
from fastslow.serve.caller import Caller
from fastslow.serve.engine import Busy, Engine, ModelCard, NotReady
from fastslow.serve.errors import ApiError
from fastslow.serve.limits import Limits
from fastslow.serve.request_record import CURRENT, AnswerRecord

MOST_OWNERS = 100_000  # requests of which it is known whose they are


class ObservedEngine:
    """An `Engine` in front of another.

    - What the caller's key does not allow is refused before the engine hears of it.
    - Only who made a request may cancel it, stop its thought or read its trace: to others it is unknown.
    - The record of the HTTP request gets an `AnswerRecord` for each ask.

    The caller is that of the HTTP request that runs; outside of one it is nobody.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self._limits = limits
        self._owners: OrderedDict[str, str] = OrderedDict()

    @property
    def card(self) -> ModelCard:
        return self.engine.card

    @property
    def ready(self) -> bool:
        return self.engine.ready

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        caller = _caller()
        answer = AnswerRecord(ask, time.perf_counter())
        record = CURRENT.get()
        if record is not None:
            record.answers.append(answer)
        try:
            answer.ask = ask = caller.admit(ask, self.card)
            self._own(ask.id, caller)
            async with aclosing(self.engine.stream(ask)) as pieces:
                latest: dict[int, float] = {}
                async for piece in pieces:
                    _note(answer, piece, latest)
                    yield piece
        except BaseException as error:
            answer.failed = _reason(error)
            raise
        finally:
            if spent := tokens_of(answer):
                self._limits.spend(caller, sum(spent))

    async def cancel(self, id: str) -> bool:
        return self._owns(id) and await self.engine.cancel(id)

    async def stop_thinking(self, id: str) -> bool:
        return self._owns(id) and await self.engine.stop_thinking(id)

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return await self.engine.trace(id) if self._owns(id) else None

    async def stats(self) -> Mapping[str, Any]:
        return await self.engine.stats()

    async def tokenize(self, ask: Ask) -> list[int]:
        return await self.engine.tokenize(ask)

    async def detokenize(self, tokens: list[int]) -> str:
        return await self.engine.detokenize(tokens)

    async def close(self, drain: float = 0.0) -> None:
        await self.engine.close(drain)

    def _own(self, id: str, caller: Caller) -> None:
        """Note whose a request is; nobody takes another's name for it."""
        if self._owners.get(id, caller.name) != caller.name:
            raise ApiError(409, f"a request {id[:64]!r} is there already", param="request_id")
        self._owners[id] = caller.name
        self._owners.move_to_end(id)
        if len(self._owners) > MOST_OWNERS:
            self._owners.popitem(last=False)

    def _owns(self, id: str) -> bool:
        return self._owners.get(id) == _caller().name


def tokens_of(answer: AnswerRecord) -> tuple[int, int] | None:
    """Tokens of its prompt and of its answers; of one that was left, those that were sent. None: none."""
    if answer.output is None:
        return (0, answer.sent) if answer.sent else None
    choices = answer.output.choices
    return len(answer.output.prompt_token_ids), sum(len(one.token_ids) for one in choices)


def _caller() -> Caller:
    record = CURRENT.get()
    return Caller() if record is None else record.caller


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


def _reason(error: BaseException) -> str | None:
    """What failed, in a word; None: its reader went away."""
    match error:
        case Busy():
            return "busy"
        case NotReady():
            return "not_ready"
        case ApiError():
            return "refused"
        case ValueError():
            return "invalid"
        case Exception():
            return "error"
    return None
