"""`RequestGroup`: the requests of one prompt, from the call to its output, and the callers that wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Condition
from time import monotonic
from typing import NamedTuple, Self

from loguru import logger

from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.core.worker import Worker
from fastslow.engine.host.machine import HomeProcess
from fastslow.output import GenerationError, Output, Piece
from fastslow.request.builder import RequestBuilder
from fastslow.request.choice import ChoiceState
from fastslow.request.options import GenerateOptions, Prompt

Waiter = asyncio.Future[None]


class LoopWakeups:
    """Futures that are due, of any number of event loops.

    A call into a loop is a system call, in which another thread may take the interpreter. So a `with`
    block of this object, such as a step of the engine, collects futures, and calls every loop once.
    """

    def __init__(self) -> None:
        self._collecting: int | None = None  # the thread that is inside the block
        self._due: dict[asyncio.AbstractEventLoop, list[Waiter]] = {}

    def wake(self, loop: asyncio.AbstractEventLoop, future: Waiter) -> None:
        if self._collecting == threading.get_ident():
            self._due.setdefault(loop, []).append(future)
        else:
            _call(loop, [future])

    def __enter__(self) -> Self:
        self._collecting = threading.get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        self._collecting = None
        if self._due:
            due, self._due = self._due, {}
            for loop, futures in due.items():
                _call(loop, futures)


def _call(loop: asyncio.AbstractEventLoop, futures: Sequence[Waiter]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits there now
        loop.call_soon_threadsafe(_arrive, futures)


def _arrive(futures: Sequence[Waiter]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class GroupParts(NamedTuple):
    """Parts that the groups of one LLM share."""

    builder: RequestBuilder
    output: Callable[[Sequence[ChoiceState]], Output]
    worker: Worker
    wakeups: LoopWakeups
    tokenising: ThreadPoolExecutor


class RequestGroup:
    """All requests of one prompt, until their output is made. Any thread may call it.

    The engine's thread wakes the threads and event loops that wait; no other thread stands between. In a forked
    process, where no news comes, all that wait raise RuntimeError.

    ValueError: one sentence about what is seen without a tokenizer.
    """

    def __init__(self, prompt: Prompt, options: GenerateOptions, parts: GroupParts) -> None:
        self._called = monotonic()
        self.count = parts.builder.check(prompt, options)  # of answers
        self._call: tuple[Prompt, GenerateOptions] | None = prompt, options
        self._builder: RequestBuilder | None = parts.builder
        self._gather: Callable[[Sequence[ChoiceState]], Output] | None = parts.output
        self.worker = parts.worker
        self._wakeups, self._tokenising = parts.wakeups, parts.tokenising
        self._home = HomeProcess()
        self.done = False
        self._queued = self._cancelled = self._streaming = False
        self._choices: list[ChoiceState] = []
        self.traces: list[StepTrace] = []  # of every choice, where the call asks for it
        self._pieces: deque[Piece] = deque()
        self._output: Output | None = None
        self._error: BaseException | None = None  # why it did not get to the engine
        self._news = Condition()  # its lock is reentrant: a stream may be collected inside it
        self._waiters: list[tuple[asyncio.AbstractEventLoop, Waiter]] = []
        self._watchers: list[Callable[[], None]] = []  # called once, when it is done

    def prepare(self) -> None:
        """Check the prompt, tokenise it, and make the requests."""
        builder, call = self._builder, self._call
        assert builder is not None and call is not None, "this was done before"
        each, shared = builder.build(*call, self._called)
        choices = [
            ChoiceState(requests, builder.inputs.tags, builder.units, shared, n)
            for n, requests in enumerate(each)
        ]
        self._builder = self._call = None
        with self._news:
            self._choices = choices
            traces = (choice.request.log.trace for choice in choices)
            self.traces = [trace for trace in traces if trace is not None]
            for choice in choices:
                choice.pieces, choice.news = self._pieces, self._wake
                choice.streaming = self._streaming

    def submit(self) -> None:
        """Prepare and start it in another thread: what is wrong is raised where the answer is asked for."""
        self._tokenising.submit(self._run)

    def _run(self) -> None:
        try:
            self.prepare()
            start([self])
        except BaseException as error:  # noqa: BLE001
            self.fail(error)

    def queue(self) -> list[ChoiceState]:
        """Return the answers to give to the engine: none if it has them, or if the group was cancelled before."""
        with self._news:
            if self._cancelled:
                self._abandon()
            if self._cancelled or self._queued or not self._choices:
                return []
            self._queued = True
            return self._choices

    def fail(self, error: BaseException) -> None:
        """End the group before it gets to the engine. Neither it nor the error, which a caller may keep, holds the
        model from now on."""
        own = None if isinstance(error, ValueError) else error  # that one may quote its prompt
        logger.opt(exception=own).debug("a request did not get to the engine")
        link: BaseException | None = error
        while link is not None:
            link.__traceback__, link = None, link.__context__
        self._error = error
        self._wake()
        self._builder = self._call = self._gather = None
        self._choices = []

    def cancel(self) -> None:
        """End it, unless it is over: within a step, or now if the engine does not have it."""
        if not self._home.here:  # a copy in a forked process; its lock may be held for ever
            return
        with self._news:
            if self.done or self._cancelled:
                return
            self._cancelled = True
            if not self._queued:
                self._abandon()
                return
            requests = [request for choice in self._choices for request in choice.requests]
        self.worker.cancel(requests)

    def stop_thinking(self) -> Future[bool]:
        """Have the thoughts of all choices closed; whether there was one."""
        with suppress(RuntimeError):  # a closed engine has ended it
            if self._queued and not self.done:
                each = self._choices
                return self.worker.ask(lambda: 0 < sum(one.request.stop_thinking() for one in each))
        self._home.check()
        nothing = Future[bool]()
        nothing.set_result(False)
        return nothing

    def stream(self) -> None:
        """Have pieces made from now on."""
        self._home.check()  # its lock may be held for ever in a forked process
        with self._news:
            self._streaming = True
            for choice in self._choices:
                choice.streaming = True

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function once it is done, from any thread; it must be quick."""
        if self.done:  # as a copy in a forked process may be
            call()
            return
        self._home.check()
        with self._news:
            if not self.done:
                self._watchers.append(call)
                return
        call()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done; False where the time is over before."""
        if self.done:  # as a copy in a forked process may be
            return True
        self._home.check()
        with self._news:
            return self._news.wait_for(lambda: self.done, timeout)

    def next(self, ready: Callable[[], bool]) -> Piece | None:
        """Wait until `ready`, then take a piece; see `take`."""
        self._home.check()
        with self._news:
            self._news.wait_for(ready)
            return self.take()

    async def next_in_loop(self, ready: Callable[[], bool]) -> Piece | None:
        """The same in an event loop."""
        with suppress(IndexError):  # what has arrived needs no lock, and that is nearly always so
            piece = self._pieces.popleft()
            if piece.output is None:
                return piece
            self._pieces.appendleft(piece)
        while True:
            await self.arrival(ready)
            with self._news:
                if ready():  # else another loop took the piece
                    return self.take()

    async def arrival(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, in an event loop. Whoever is cancelled meanwhile cancels the request."""
        self._home.check()
        loop = asyncio.get_running_loop()
        while True:
            with self._news:
                if ready():
                    return
                waiter = loop, loop.create_future()
                self._waiters.append(waiter)
            try:
                await waiter[1]
            except BaseException:  # the task is cancelled, or its loop is gone
                with self._news, suppress(ValueError):
                    self._waiters.remove(waiter)
                self.cancel()
                raise

    def arrived(self) -> bool:
        """Tell whether there is a piece to take, or no more will come."""
        return self.done or bool(self._pieces)

    def take(self) -> Piece | None:
        """The next piece that arrived; None: that was all. After the last one it raises what went wrong."""
        with self._news:
            if self._error is not None:
                raise self._error
            if self.done:
                self.finished()
            piece = self._pieces.popleft() if self._pieces else None
        return piece if piece is None or piece.output is None else Piece(output=self.outcome())

    def finished(self) -> Output:
        """The output of a group that the engine had, whatever came of it."""
        with self._news:
            if self._output is None:
                for choice in self._choices:
                    choice.end_pieces()
                assert self._gather is not None, "this was done before"
                self._output = self._gather(self._choices)
                self._pieces.append(Piece(output=self._output))
                self._choices, self._gather = [], None  # which hold on to the model
            return self._output

    def outcome(self) -> Output:
        """The output of a group that is done; it raises what went wrong."""
        if self._error is not None:
            raise self._error
        output = self.finished()
        wrong = next((c.error for c in output.choices if c.error is not None), None)
        if wrong is not None:
            raise GenerationError(f"the request failed: {wrong}", [output])
        return output

    @property
    def roots(self) -> tuple[Hashable, Hashable]:
        """Whatever besides the tokens changes the KV of its prompt; and the same for every memory key."""
        request = self._choices[0].request
        return request.root, request.shared_root

    def _abandon(self) -> None:
        for choice in self._choices:
            choice.abandon()
        self._wake()

    def _wake(self) -> None:
        calls: list[Callable[[], None]] = []
        with self._news:
            choices = self._choices
            over = bool(choices) and all(choice.over for choice in choices)
            self.done = self.done or self._error is not None or over
            self._news.notify_all()
            waiters, self._waiters = self._waiters, []
            if self.done:
                calls, self._watchers = self._watchers, []
                for choice in choices:  # a circle would keep a dropped LLM until a collection
                    choice.news = lambda: None
        for loop, future in waiters:
            self._wakeups.wake(loop, future)
        for call in calls:
            call()


def start(groups: Sequence[RequestGroup]) -> None:
    """Give groups to the engine, all for the same step; not those that are not prepared, or not again."""
    requests = [choice.request for group in groups for choice in group.queue()]
    try:
        if requests:
            groups[0].worker.submit(requests)
    except BaseException as error:
        for group in groups:
            group.fail(error)
        raise
