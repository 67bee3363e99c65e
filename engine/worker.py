"""The one thread that steps the engine, while any number of threads ask it for answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from loguru import logger

from fastslow.engine.core import Core
from fastslow.engine.request import Request


class Worker:
    """Runs a core in a thread of its own, until closed.

    A step that raises ends the requests that were running with that error; the engine goes on.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="fastslow-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; their listeners are called from the engine's thread.

        Raises:
            RuntimeError: the worker is closed.
        """
        self._post(lambda: self._add(requests))

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests that are not over yet; unknown to a closed worker, which ended all."""
        if self._open:
            self._post(lambda: self._cancel(requests))

    def close(self) -> None:
        """Cancel what runs, give all pages back, end the thread. Closing twice is fine."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._inbox.put(lambda: None)
        self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        with self._lock:
            if not self._open:
                raise RuntimeError("this LLM is closed; make a new one")
            self._inbox.put(action)

    def _run(self) -> None:
        while self._open:
            self._read_inbox()
            if not self._open:
                break
            try:
                self._core.step()
            except Exception as error:  # noqa: BLE001 - whatever it was, the engine must go on
                logger.exception("a step failed; its requests end with this error")
                self._core.end(list(self._core.scheduler.running), "error", error)
            if self._core.idle:
                self._core.kv.check_integrity()
        scheduler = self._core.scheduler
        self._read_all()
        self._core.end([*scheduler.running, *scheduler.waiting], "cancelled", None)

    def _read_inbox(self) -> None:
        if self._core.idle:
            self._inbox.get()()  # nothing to do: sleep until somebody asks
        self._read_all()

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
