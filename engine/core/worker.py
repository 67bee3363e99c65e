"""The one thread that steps the engine; any number of threads give it requests."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from loguru import logger

from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.parallel.rank_group import RankError
from fastslow.engine.sampling.stop import Reason

PAUSE = 0.1  # seconds of idleness before pages are checked


class Worker:
    """Runs a core in a thread of its own, until closed.

    A step that raises ends the requests that were running with that error; the engine goes on.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Reentrant: a stream that is garbage-collected cancels its request, perhaps inside this lock.
        self._lock = threading.RLock()
        self._open = True
        self._unchecked = False  # whether steps ran since pages were last checked
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="fastslow-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread cut off inside a kernel may bring the process down

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their listeners are called from the engine's thread.

        Raises:
            RuntimeError: the worker is closed.
        """
        self.between_steps(lambda: self._add(requests))

    def between_steps(self, action: Callable[[], None]) -> None:
        """Run something in the engine's thread, before all that is queued later.

        Raises:
            RuntimeError: the worker is closed.
        """
        with self._lock:
            if not self._open:
                why = "closed" if self._failure is None else f"broken ({self._failure})"
                raise RuntimeError(f"this LLM is {why}; make a new one")
            self._inbox.put(action)

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests that are not over yet; a closed worker has ended all of them."""
        with self._lock:
            if self._open:
                self._inbox.put(lambda: self._cancel(requests))

    def close(self) -> None:
        """Cancel what runs, give all pages back, end the thread. Closing twice is fine."""
        with self._lock:
            if self._open:
                self._open = False
                self._inbox.put(lambda: None)
        self._thread.join()
        atexit.unregister(self.close)
        self.__dict__.pop("_core", None)  # the model's memory is free once the LLM lets go too

    def _run(self) -> None:
        try:
            while self._open:
                self._read_inbox()
                if self._open:
                    self._step()
        except Exception as error:  # noqa: BLE001 - nobody may wait for a thread that is gone
            logger.exception("the engine broke and is closed")
            self._failure = error
        with self._lock:
            self._open = False
        self._read_all()
        scheduler = self._core.scheduler
        reason: Reason = "cancelled" if self._failure is None else "error"
        self._core.end([*scheduler.running, *scheduler.waiting], reason, self._failure)

    def _step(self) -> None:
        scheduler = self._core.scheduler
        try:
            self._core.step()
        except Exception as error:  # noqa: BLE001 - whatever it was, the engine must go on
            failed = list(scheduler.running) or list(scheduler.waiting)[:1]
            said = "a step failed; its {} request(s) end with this error"
            # an error of another rank was logged there, and has no traceback in this process
            known = isinstance(error, RankError)
            logger.opt(exception=None if known else error).error(said, len(failed))
            self._core.end(failed, "error", error)
        self._unchecked = True

    def _read_inbox(self) -> None:
        if self._core.idle:
            self._sleep()()
        self._read_all()

    def _sleep(self) -> Callable[[], None]:
        """Wait for a call. Pages are checked once a pause is long enough: a check takes milliseconds
        for thousands of pages, for which a call that comes at once would have to wait."""
        if self._unchecked:
            try:
                return self._inbox.get(timeout=PAUSE)
            except Empty:
                self._core.kv.check_integrity()
                self._unchecked = False
        return self._inbox.get()

    def _read_all(self) -> None:
        while True:
            try:
                self._inbox.get_nowait()()
            except Empty:
                return

    def _cancel(self, requests: Sequence[Request]) -> None:
        self._core.end([r for r in requests if not r.done], "cancelled", None)

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._core.add(request)
