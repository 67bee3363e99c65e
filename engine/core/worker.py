"""The one thread that steps the engine, while any number of threads ask it for answers."""

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
        # A stream that is garbage-collected cancels its request wherever its thread happens to be.
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
        """Have something done in the engine's thread, before whatever is asked of it later.

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
            # what another rank did is told already, and not to be found in this one's stack
            known = isinstance(error, RankError)
            logger.opt(exception=None if known else error).error(said, len(failed))
            self._core.end(failed, "error", error)
        self._unchecked = True

    def _read_inbox(self) -> None:
        if self._core.idle:
            self._sleep()()
        self._read_all()

    def _sleep(self) -> Callable[[], None]:
        """Nothing to do: wait until somebody asks. Pages are checked once a pause is long enough:
        whoever asks again at once would wait for it, milliseconds for thousands of pages."""
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
