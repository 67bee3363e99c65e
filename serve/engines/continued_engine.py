"""`ContinuedEngine`: answers outlive the engines that make them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from loguru import logger

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.engine import Busy, Engine, NotReady, WrappedEngine
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.connection import EngineCrashed
from fastslow.serve.engines.sent_pieces import OtherAnswer, SentPieces, whole_sources

ANY_REPLICA = ("tokenize", "detokenize", "token_bytes")  # calls that any replica answers alike
FIND = 0.02  # seconds between two looks for a request that is cancelled
LEAST = 0.001  # seconds of a request's time that another try has at least: it ends with what it has


@dataclass(frozen=True, slots=True)
class Retries:
    """Limits for retrying a broken answer."""

    deaths: int = 3  # engines that end under one answer until it is given up: it may be the reason
    seconds: float = 30.0  # without any piece since the engine ended; then it is given up, too
    held: float = 10.0  # seconds that a new request waits where replicas ran, and none does now
    first: float = 0.02  # seconds of the pause before a try; it doubles with each
    longest: float = 2.0

    def pause(self, tries: int) -> float:
        """Seconds before the next try, after this number of tries."""
        return min(self.longest, self.first * 2.0 ** min(tries, 30))


@dataclass(slots=True)
class _ContinuedRequest:
    """State of a request on its way, and what became of it."""

    request: GenerateRequest
    started: float
    there: bool = True  # whether the engine was ready at first
    sent: SentPieces = field(default_factory=SentPieces)
    cancelled: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)  # a pause before a try is over
    failed: list[str] = field(default_factory=list)  # replicas
    deaths: int = 0
    tries: int = 0  # since a piece came
    came: bool = False  # a piece, of the present try
    continued: int = 0
    asked_again: int = 0
    since: float | None = None  # when the latest engine ended, and nothing has come since
    try_started: float = 0.0
    # it was new to an engine that crashed, and nothing has come of it since
    suspected: bool = False
    asked_to_stop: bool = False  # its caller closed a thought
    refused: str = ""  # why it cannot be continued: it is made again from its beginning

    @property
    def first_try(self) -> bool:
        """Nothing has ended under it."""
        return not self.asked_again and not self.continued


class ContinuedEngine(WrappedEngine):
    """An `Engine` in front of one of several replicas. An answer whose replica ends is requested again. Where
    a part of it was streamed, another replica continues after that part, and the client notices no more than
    a pause. Greedy and seeded answers are exactly what they would have been.

    What an engine refuses to continue, as where a mode may escalate, is made again from its beginning, without
    what was sent. What has other tokens then, breaks too often, or crashes an engine to which it alone was new,
    ends with `NotReady` and one sentence. An answer that is not streamed is made again from its beginning:
    pieces would cost time in each step of each answer, and replicas seldom end.

    engine: raises `NotReady` where a replica ended, with its name as `replica`. retried, continued, given_up: answers
    that were requested again with nothing streamed; that another replica continued; and that ended by an error. An
    answer may count several times.
    """

    def __init__(self, engine: Engine, retries: Retries = Retries()) -> None:
        super().__init__(engine)
        self._retries = retries
        self._running: dict[str, _ContinuedRequest] = {}
        self._closing = False
        self._ran = False  # whether the model was loaded once: a start again takes seconds
        self._suspect: _ContinuedRequest | None = None  # of the suspected ones, the one that runs
        self.retried = self.continued = self.given_up = 0

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        own = _ContinuedRequest(replace(request, whole=True), time.monotonic(), self.engine.ready)
        self._ran |= own.there
        self._running[request.id] = own
        try:
            while True:
                own.try_started = time.monotonic()
                try:
                    async with aclosing(self._try(own)) as pieces:
                        async for piece in pieces:
                            yield piece
                    return
                except (NotReady, Busy, ValueError, OtherAnswer) as error:
                    pause = self._pause(own, error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(own.woken.wait(), pause)
                if own.suspected:
                    await self._turn(own)
                if own.cancelled:
                    raise NotReady("the request was cancelled after its engine had ended")
        finally:
            self._cleared(own)
            if self._running.get(request.id) is own:
                del self._running[request.id]

    async def cancel(self, id: str) -> bool:
        own = self._running.get(id)
        if own is None:
            return await self.engine.cancel(id)
        own.cancelled = True
        own.woken.set()
        while True:
            came = own.came
            with suppress(NotReady):
                if await self.engine.cancel(id):
                    return True
            if came or self._running.get(id) is not own:
                return True
            await asyncio.sleep(FIND)  # it is on its way to a replica, which does not know it yet

    async def stop_thinking(self, id: str) -> bool:
        own, stopped = self._running.get(id), await self.engine.stop_thinking(id)
        if stopped and own is not None:
            own.asked_to_stop = True
        return stopped

    async def close(self, drain: float = 0.0) -> None:
        self._closing = True
        for own in self._running.values():
            own.woken.set()
        await self.engine.close(drain)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method: one that any replica can do, and a running answer may need, again where its replica ends."""
        started, tries = time.monotonic(), 0
        while True:
            try:
                return await super().call(method, *arguments)
            except NotReady:
                late = time.monotonic() - started >= self._retries.seconds
                wanted = self._running or self.engine.ready
                if method not in ANY_REPLICA or late or self._closing or not wanted:
                    raise
            await asyncio.sleep(self._retries.pause(tries))
            tries += 1

    async def _try(self, own: _ContinuedRequest) -> AsyncGenerator[Piece, None]:
        """Ask once; the pieces are those that were not sent yet."""
        request, sent, own.came = own.request, own.sent, False
        stopping: asyncio.Task[None] | None = None
        if own.since is not None or own.tries:
            request = _asked_again(own)
            sent.begin_again()
            if own.asked_to_stop and not sent.stopped(request.sampling.get("n") or 1):
                stopping = asyncio.create_task(self._stop_again(own))
        try:
            async with aclosing(self.engine.stream(request)) as pieces:
                async for piece in pieces:
                    if not own.came:
                        self._cleared(own)
                    own.since, own.tries, own.came = None, 0, True
                    if piece.output is not None:
                        yield replace(piece, output=_whole(own, piece.output))
                        return
                    fresh = sent.take(piece, time.monotonic()) if own.request.streamed else None
                    if fresh is not None:
                        yield fresh
        finally:
            self._cleared(own, own.came)
            if stopping is not None:
                stopping.cancel()
        raise NotReady("the engine ended before the answer was there")

    async def _turn(self, own: _ContinuedRequest) -> None:
        """Wait until no other suspected request runs: so an engine that crashes again shows which one it was."""
        began = time.monotonic()
        while self._suspect is not None and not own.woken.is_set():
            await asyncio.sleep(FIND)
        self._suspect = self._suspect or own
        if own.since is not None:
            own.since += time.monotonic() - began  # which was no search for an engine

    def _cleared(self, own: _ContinuedRequest, innocent: bool = True) -> None:
        """Something came of a request, or its try is over: another suspected one may run."""
        own.suspected &= not innocent
        if self._suspect is own:
            self._suspect = None

    async def _stop_again(self, own: _ContinuedRequest) -> None:
        """Have a thought closed on the engine that answers now, once that has it."""
        pause = FIND
        while True:
            with suppress(RuntimeError):
                if await self.stop_thinking(own.request.id):
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._retries.longest)

    def _pause(self, own: _ContinuedRequest, error: Exception) -> float:
        """Return the seconds before the next try. Raises an error where there is none."""
        now, replica = time.monotonic(), getattr(error, "replica", "")
        refused = getattr(error, "refused", True)
        first = own.since is None and own.first_try
        if first and isinstance(error, Busy | ValueError):
            raise error
        if first and isinstance(error, NotReady) and not (own.sent.tokens or replica or own.there):
            held = self._ran and now - own.started < self._retries.held
            if not held or self._closing or own.cancelled:
                raise error
            return self._next_pause(own)
        if isinstance(error, ValueError) and own.sent.tokens and not (own.came or own.refused):
            own.refused = str(error)
            said = "request {} is made again from its beginning: {}"
            logger.warning(said, own.request.id, error)
            return 0.0
        if replica:
            own.failed.append(replica)
        if not (isinstance(error, EngineCrashed) and not error.suspects):  # others were to blame
            own.deaths += not refused and (own.came or bool(replica))
        if own.since is None or (replica and not refused):
            own.since = now  # where one had taken it, the search begins anew: deaths bound that
        if (why := self._hopeless(own, error, now - own.since)) is not None:
            self._give_up(own, why, error)
        if own.came or replica or first:
            self._notify(own, f"engine {replica}" if replica else "its engine")
        pause = self._next_pause(own)
        if isinstance(error, Busy):
            pause = max(pause, min(error.retry_after, self._retries.longest))
        return pause

    def _next_pause(self, own: _ContinuedRequest) -> float:
        own.tries += 1
        return self._retries.pause(own.tries - 1)

    def _hopeless(self, own: _ContinuedRequest, error: Exception, seconds: float) -> str | None:
        """Why it is not requested again, these seconds after its engine ended."""
        if own.cancelled:
            return "the request was cancelled"
        if self._closing:
            return "the server is closing"
        if isinstance(error, ValueError):
            return f"it cannot be continued: {error}"
        if isinstance(error, OtherAnswer):
            return f"it cannot be continued: {own.refused or 'another engine made other tokens'}"
        if isinstance(error, EngineCrashed) and error.suspects:
            if error.suspects == 1:
                return f"{error}: no other engine is asked"
            if own.suspected:
                return "two engines crashed as they began it"
            own.suspected = True
        if own.deaths >= self._retries.deaths:
            return f"it was under way on {own.deaths} engines when they ended"
        if seconds >= self._retries.seconds:
            return f"no other engine took it within {self._retries.seconds:g} s"
        return None

    def _give_up(self, own: _ContinuedRequest, why: str, error: Exception) -> NoReturn:
        self.given_up += 1
        logger.error("request {} is given up: {}", own.request.id, why)
        if isinstance(error, Busy) and not own.sent.tokens:
            raise error
        raise NotReady(f"the engine ended in the middle of the request; {why}") from None

    def _notify(self, own: _ContinuedRequest, where: str) -> None:
        id, tokens = own.request.id, own.sent.tokens
        if tokens:
            own.continued += 1
            self.continued += 1
            said = "request {}: {} ended; another engine continues after {} tokens"
            logger.warning(said, id, where, tokens)
        else:
            own.asked_again += 1
            self.retried += 1
            logger.warning("request {}: {} ended; another engine is asked", id, where)


def _asked_again(own: _ContinuedRequest) -> GenerateRequest:
    """The request for another engine, after what was sent where that is possible, and for the time that is left."""
    request, timeout = own.request, own.request.options.timeout
    if timeout is not None:
        timeout = max(LEAST, timeout - (time.monotonic() - own.started))
    answered = own.sent.answered if own.sent.tokens else request.options.answered
    if answered is not None and own.refused:  # all that is kept is what was decided
        answered = replace(answered, tokens=[[] for _ in answered.tokens], stopped=())
    asked = request.with_options(answered=answered, timeout=timeout)
    # one that may end an engine shows with a piece that it does not
    streamed = request.streamed or own.suspected
    return replace(asked, avoid=tuple(own.failed), streamed=streamed)


def _whole(own: _ContinuedRequest, output: Output) -> Output:
    """The output as it would be if nothing had ended: its times are those that the client saw."""
    if own.first_try:
        return output
    now = time.monotonic()
    choices = [_whole_choice(own, n, choice, now) for n, choice in enumerate(output.choices)]
    return replace(output, choices=choices)


def _whole_choice(own: _ContinuedRequest, index: int, choice: Completion, now: float) -> Completion:
    sent, metrics = own.sent.choices.get(index), choice.metrics
    lost = own.try_started - own.started
    ttft, tpot = metrics.ttft + lost, metrics.tpot
    if sent is not None and sent.first is not None:
        ttft = sent.first - own.started
        tpot = (now - sent.first) / max(1, metrics.tokens - 1)
    kept = metrics.target_kept
    if metrics.target_ms is not None:
        kept = bool(metrics.tokens) and 1000 * max(ttft, tpot) <= metrics.target_ms
    notes = [metrics.decision]
    if own.continued:
        notes.append(f"continued on another engine ({_times(own.continued)})")
    if own.asked_again:
        notes.append(f"asked again of another engine ({_times(own.asked_again)})")
    made = replace(
        metrics,
        ttft=ttft,
        tpot=tpot,
        target_kept=kept,
        queue_seconds=metrics.queue_seconds + lost,
        decision="; ".join(filter(None, notes)),
    )
    return replace(choice, metrics=made, sources=whole_sources(sent, choice.sources))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
