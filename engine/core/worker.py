"""The one thread that steps the engine; any number of threads give it requests."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from loguru import logger

from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.host.machine import HomeProcess
from fastslow.engine.parallel.rank_group import RankError
from fastslow.engine.sampling.stop import Reason

T = TypeVar("T")

PAUSE = 0.1  # seconds of idleness before pages are checked


class _Errand(NamedTuple):
    """Work that a caller asks of the engine's thread."""

    run: Callable[[], None]
    # Called instead of `run`, or after it was cut off, where the engine is closed (None) or broken.
    refuse: Callable[[RuntimeError | None], None] = lambda _: None


class Worker:
    """Runs a core in its own thread, until closed.

    A step that raises ends the requests that were running with that error; the engine runs on. Whatever
    ends the thread, every caller hears of it, waiting or later.

    core: what the thread steps. closed: called in the thread when it ends because `close` or `end` was called.
    around: entered before each step and each errand of a caller, and left after it.
    """

    def __init__(
        self,
        core: EngineCore,
        closed: Callable[[], object] = lambda: None,
        around: AbstractContextManager[object] | None = None,
    ) -> None:
        self._core = core
        self._closed = closed
        self._around = around or nullcontext()
        self._home = HomeProcess()
        self._inbox: SimpleQueue[_Errand] = SimpleQueue()
        self._errand = _Errand(lambda: None)  # the latest
        # Reentrant: a stream that is garbage-collected cancels its request, perhaps inside this lock.
        self._lock = threading.RLock()
        self._open = True
        self._unchecked = False  # whether steps ran since pages were last checked
        self._failure: RuntimeError | None = None
        self._thread = threading.Thread(target=self._run, name="fastslow-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread cut off inside a kernel may bring the process down

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their listeners are called from the engine's thread.

        Raises RuntimeError if the worker is closed, or was made in another process.
        """

        def refuse(error: RuntimeError | None) -> None:
            self._end(requests, "cancelled" if error is None else "error", error)

        self._put(_Errand(lambda: self._add(requests), refuse))

    def between_steps(self, action: Callable[[], None]) -> None:
        """Run something in the engine's thread, before all that is queued later, and wait for it.

        Raises what the action raises, and RuntimeError as `submit` does.
        """
        self.ask(action).result()

    def ask(self, action: Callable[[], T]) -> Future[T]:
        """The same without waiting: a future of what the action returns, or raises. Where it is cancelled
        before its turn comes, the action is left out."""
        over = Future[T]()

        def run() -> None:
            if not over.set_running_or_notify_cancel():
                return
            try:
                over.set_result(action())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                over.set_exception(error)

        def refuse(error: RuntimeError | None) -> None:
            if not over.done() and (over.running() or over.set_running_or_notify_cancel()):
                over.set_exception(error or self._gone())

        if threading.current_thread() is self._thread:
            run()
        else:
            self._put(_Errand(run, refuse))
        return over

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests that are not over yet; a closed worker has ended all of them."""
        if self._home.here:
            with self._lock:
                if self._open:
                    self._inbox.put(_Errand(lambda: self._end(requests, "cancelled", None)))

    def close(self) -> None:
        """Cancel what runs, give all pages back, end the thread. Closing twice is fine."""
        self.end()
        if self._home.here and threading.current_thread() is not self._thread:
            self._thread.join()

    def end(self) -> None:
        """Close, and do not wait for it: callable from anywhere, as in a garbage collection."""
        if self._home.here:
            with self._lock:
                if self._open:
                    self._open = False
                    self._inbox.put(_Errand(lambda: None))

    @property
    def ended(self) -> bool:
        """True where the thread is gone."""
        return not self._thread.is_alive()

    @property
    def broken(self) -> bool:
        """True where the thread ended by an error, and not because it was closed."""
        return self._failure is not None

    def _put(self, errand: _Errand) -> None:
        self._home.check()
        with self._lock:
            if not self._open:
                raise self._gone()
            self._inbox.put(errand)

    def _gone(self) -> RuntimeError:
        why = "closed" if self._failure is None else f"broken ({self._failure})"
        return RuntimeError(f"this LLM is {why}; make a new one")

    def _run(self) -> None:
        try:
            while self._open:
                self._read_inbox()
                if self._open:
                    self._step()
        except BaseException as error:  # noqa: BLE001 - nobody may wait for a thread that is gone
            logger.exception("the engine broke and is closed")
            self._failure = RuntimeError(f"the engine broke: {type(error).__name__}: {error}")
        try:
            self._tell_all()
        except BaseException:  # noqa: BLE001 - all have been notified
            logger.exception("the engine ended with an error")
        atexit.unregister(self.close)
        del self._core, self._errand  # the model's memory is free once the LLM lets go too

    def _tell_all(self) -> None:
        """Every request ends, and every caller hears of it, whatever raises."""
        with self._lock:
            self._open = False
        errands = [self._errand]
        while not self._inbox.empty():
            errands.append(self._inbox.get())
        with ExitStack() as every:  # the last one first
            if self._failure is None:
                every.callback(self._closed)
            reason: Reason = "cancelled" if self._failure is None else "error"
            every.callback(self._core.end_all, reason, self._failure)
            for errand in errands:
                every.callback(errand.refuse, self._failure)

    def _step(self) -> None:
        with self._around:
            try:
                self._core.step()
            except Exception as error:  # noqa: BLE001 - whatever it was, the engine must run on
                said = "a step failed; its {} request(s) end with this error"
                # an error of another rank was logged there, and has no traceback in this process
                known = isinstance(error, RankError)
                failed = self._core.fail(error)
                logger.opt(exception=None if known else error).error(said, failed)
        self._unchecked = True

    def _read_inbox(self) -> None:
        if self._core.idle:
            self._do(self._sleep())
        while not self._inbox.empty():
            self._do(self._inbox.get())

    def _do(self, errand: _Errand) -> None:
        self._errand = errand  # if it ends the thread, it is refused
        with self._around:
            errand.run()
        self._errand = _Errand(lambda: None)

    def _sleep(self) -> _Errand:
        """Wait for a call. Pages are checked in a long pause only: a call that comes at once would wait for it."""
        if self._unchecked:
            try:
                return self._inbox.get(timeout=PAUSE)
            except Empty:
                self._core.kv.check_integrity()
                self._unchecked = False
        return self._inbox.get()

    def _end(self, requests: Sequence[Request], reason: Reason, error: Exception | None) -> None:
        self._core.end([r for r in requests if not r.done], reason, error)

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self._core.add(request)
            except Exception as error:  # noqa: BLE001 - it is this request's
                logger.exception("a request could not be queued; it ends with this error")
                self._core.end([request], "error", error)
