"""Calls of replicas whose answers nobody waits for any more."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


class AbandonedCalls:
    """Ends them once a replica has taken them. Ray loses sight of a call that is cancelled in the moment at which a
    replica takes it: its answer would be made to the end, and count as running for ever.

    Args:
        patience: seconds in which a replica must take a call.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()

    def leave(self, response: Any, first: asyncio.Future[bytes]) -> None:
        """End a call.

        Args:
            response: of a handle.
            first: its first item, which a replica sends as soon as it has taken the call.
        """
        if first.done():
            response.cancel()
            return
        task = asyncio.create_task(self._end(response, first))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float) -> None:
        """Wait until all are ended, but not for longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()

    async def _end(self, response: Any, first: asyncio.Future[bytes]) -> None:
        try:
            await asyncio.wait([first], timeout=self._patience)
        finally:
            response.cancel()
            first.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await first
