"""`AsyncLLM`: the same engine for event loops, with a queue that does not grow without end."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import fields
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any, Self
from weakref import WeakSet

from fastslow.admission import Admission
from fastslow.engine.core.stats import EngineStats
from fastslow.engine_args import AsyncArgs, EngineArgs
from fastslow.keywords import takes_fields, takes_options
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.request.group import RequestGroup
from fastslow.request.handle import PieceStream, RequestHandle
from fastslow.request.options import Conversation, GenerateOptions, Prompt, as_messages, as_wait

MAX_WAITING = AsyncArgs.max_waiting
PAUSE = 0.02  # seconds between two looks at whether all is over


class AsyncLLM:
    """An `LLM` for asyncio: nothing that it does stops the event loop.

    `async with AsyncLLM(model) as llm:` loads the model in a thread and closes it at the end. Prompts are
    tokenised in threads, too. Any number of tasks may ask. Calls belong to one event loop; handles that
    `submit` gives may be awaited in others.

    Calls raise what those of `LLM` raise, and before anything is done `Busy` where too many wait, and
    RuntimeError where it is not loaded, is drained, or closed. `AsyncArgs` says what its arguments mean.
    """

    @takes_fields(AsyncArgs)
    def __init__(self, args: AsyncArgs) -> None:
        self._make = partial(
            LLM, **{one.name: getattr(args, one.name) for one in fields(EngineArgs)}
        )
        self._max_waiting = args.max_waiting
        self._llm: LLM | None = None
        self._admission = Admission(0, 0)
        self._groups = WeakSet[RequestGroup]()  # what runs is held by the engine
        self._open = True

    @classmethod
    async def load(cls, *given: Any, **options: Any) -> Self:
        """Load a model in a thread, with the arguments of the class; `close` ends it."""
        return await cls(*given, **options).__aenter__()

    @classmethod
    def around(cls, llm: LLM, max_waiting: int = MAX_WAITING) -> Self:
        """The same for an `LLM` that is loaded. Other callers of that do not count as waiting here."""
        made = cls(max_waiting=max_waiting)
        made._begin(llm)
        return made

    @property
    def llm(self) -> LLM:
        """The `LLM` that answers. RuntimeError: it is not loaded."""
        if self._llm is None:
            raise RuntimeError("this AsyncLLM is not loaded: use `async with AsyncLLM(...) as llm`")
        return self._llm

    @property
    def answers(self) -> int:
        """Answers that were asked for and are not over: they are tokenised, wait or run."""
        return self._admission.answers

    @property
    def accepting(self) -> bool:
        """True while it is loaded, and neither closed nor drained."""
        return self._open and self._llm is not None

    @takes_options(GenerateOptions)
    async def generate(self, prompt: Prompt, options: GenerateOptions) -> Output:
        """Answer one prompt. A task that is cancelled meanwhile cancels the request."""
        return await self.begin(prompt, options)

    @takes_options(GenerateOptions)
    async def chat(self, messages: Conversation, options: GenerateOptions) -> Output:
        """`generate` for a conversation, or one user message given as text."""
        return await self.begin(as_messages(messages), options)

    @takes_options(GenerateOptions)
    def stream(self, prompt: Prompt, options: GenerateOptions) -> PieceStream:
        """Return one prompt's answer in pieces, for `async for`; the request starts now. Leaving the loop, `aclose`
        and cancelling the task end it."""
        return aiter(self.begin(prompt, options))

    @takes_options(GenerateOptions)
    def stream_chat(self, messages: Conversation, options: GenerateOptions) -> PieceStream:
        """`stream` for a conversation, or one user message given as text."""
        return aiter(self.begin(as_messages(messages), options))

    @takes_options(GenerateOptions)
    def submit(self, prompt: Prompt, options: GenerateOptions) -> RequestHandle:
        """Start to answer one prompt; the handle can be awaited, iterated over and cancelled."""
        return self.begin(prompt, options)

    def begin(self, prompt: Prompt, options: GenerateOptions) -> RequestHandle:
        """`submit` for options that are made already."""
        llm = self.llm
        if not self._open:
            raise RuntimeError("this AsyncLLM takes no more requests: it is drained or closed")
        handle = RequestHandle.of("submit", prompt, options, llm._parts)
        self._admission.enter(count := handle._group.count, options.share)
        leave = partial(self._admission.leave, count, options.share)
        try:
            handle.start(leave)
        except BaseException:
            leave()
            raise
        self._groups.add(handle._group)
        return handle

    async def stop_thinking(self, request: RequestHandle | PieceStream) -> bool:
        """Have the thought of a request closed from the next step on, so that its answer comes. False: it
        has no open thought, not yet or not any more."""
        return await asyncio.wrap_future(request._group.stop_thinking())

    def stats(self) -> EngineStats:
        """As `LLM.stats`."""
        return self.llm.stats()

    async def forget_prompts(self) -> None:
        """As `LLM.forget_prompts`."""
        await asyncio.to_thread(self.llm.forget_prompts)

    async def drain(self, seconds: float | None = None) -> None:
        """Take no more requests, let those that wait and run continue for this many seconds (None = until
        they are over), then cancel what is left, and wait until all is over.

        Raises:
            ValueError: no number of seconds.
        """
        wait = as_wait(seconds)
        self._open = False
        end = None if wait is None else monotonic() + wait
        while self.answers and (end is None or monotonic() < end):
            await asyncio.sleep(PAUSE if end is None else min(PAUSE, max(0.0, end - monotonic())))
        for group in list(self._groups):
            group.cancel()
        while self.answers:
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        """Cancel what runs, end the engine's thread, free the model. Closing twice is fine."""
        self._open = False
        if self._llm is not None:
            await asyncio.to_thread(self._llm.close)

    async def __aenter__(self) -> Self:
        if self._llm is None:
            loading = Future[LLM]()
            Thread(target=self._load, args=(loading,), name="fastslow-load").start()
            try:
                self._begin(await asyncio.wrap_future(loading))
            except asyncio.CancelledError:
                if not loading.cancel() and loading.exception() is None:
                    Thread(target=loading.result().close).start()
                raise
        if not self._open:
            await self.close()
            raise RuntimeError("this AsyncLLM was closed before its model was loaded")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _load(self, loading: Future[LLM]) -> None:
        try:
            llm = self._make()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            with suppress(InvalidStateError):
                loading.set_exception(error)
            return
        try:
            loading.set_result(llm)
        except InvalidStateError:  # it was cancelled
            llm.close()

    def _begin(self, llm: LLM) -> None:
        self._llm = llm
        self._admission = Admission(llm.max_running, self._max_waiting)
