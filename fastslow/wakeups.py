"""Wakes event loops from the engine's thread, once for all news of a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

Future = asyncio.Future[None]


class LoopWakeups:
    """Futures that are due, of any number of event loops.

    A call into a loop costs its thread and the caller's more than what it tells: a system call, in which
    another thread may take the interpreter. So in a `with` block of this object, as each step of the
    engine is one, futures are collected, and every loop is called once at its end.
    """

    def __init__(self) -> None:
        self._collecting: int | None = None  # the thread that is inside the block
        self._due: dict[asyncio.AbstractEventLoop, list[Future]] = {}

    def wake(self, loop: asyncio.AbstractEventLoop, future: Future) -> None:
        """Have a future of a loop arrive: at the end of the block inside one, at once in other threads."""
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


def _call(loop: asyncio.AbstractEventLoop, futures: Sequence[Future]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits there now
        loop.call_soon_threadsafe(_arrive, futures)


def _arrive(futures: Sequence[Future]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
