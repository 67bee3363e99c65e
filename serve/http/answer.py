"""Answers as they come from the engine: whole, or in pieces, for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.types import Receive

from fastslow.output import Output, Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import Engine, NotReady
from fastslow.serve.api.errors import ApiError, refused

T = TypeVar("T")
GONE = 499  # nginx's status for a client that closed its connection


class ClientLeft(ApiError):
    """Nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(GONE, "the client closed the connection")


PlacedPiece = tuple[int, Piece]
"""Which of several prompts, and a piece of its answer."""


async def whole(engine: Engine, ask: Ask) -> Output:
    """The answer to one ask.

    Raises:
        ApiError: what is asked does not fit.
        Busy, NotReady, GenerationError: as `Engine.stream`.
    """
    output = None
    async with aclosing(engine.stream(ask)) as stream:
        try:
            async for piece in stream:
                output = piece.output or output
        except ValueError as error:
            raise refused(error) from None
    if output is None:
        raise NotReady("the engine ended before the answer was there")
    return output


async def all_whole(engine: Engine, asks: Sequence[Ask]) -> list[Output]:
    """The answers to several asks, which run side by side; where one fails, all end."""
    if len(asks) == 1:
        return [await whole(engine, asks[0])]
    tasks = [asyncio.ensure_future(whole(engine, ask)) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled where the client leaves.

    Raises:
        ClientLeft: it did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        await _end([task, gone])


async def left(receive: Receive) -> None:
    """Return when the client closes its connection; for a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Pieces:
    """The pieces of one answer or several, in bunches: all that came since the last one was taken.

    A slow reader holds up nobody: pieces wait here, never more of them than the answer has tokens.
    """

    def __init__(self, engine: Engine, asks: Sequence[Ask]) -> None:
        self._came: list[PlacedPiece] = []
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._left = len(asks)
        self._pumps = [
            asyncio.ensure_future(self._pump(engine, place, ask)) for place, ask in enumerate(asks)
        ]

    async def take(self, seconds: float) -> list[PlacedPiece] | None:
        """The next bunch; empty if none came within so many seconds, None after the last one.

        Raises:
            ApiError: what is asked does not fit; only before the first piece.
            Busy, NotReady, GenerationError: as `Engine.stream`.
        """
        if not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        if self._came:
            bunch, self._came = self._came, []
            if self._left and self._error is None:
                self._news.clear()
            return bunch
        if self._error is not None:
            raise self._error
        return None if not self._left else []

    async def close(self) -> None:
        """Cancel what still runs."""
        await _end(self._pumps)

    async def _pump(self, engine: Engine, place: int, ask: Ask) -> None:
        try:
            async with aclosing(engine.stream(ask)) as stream:
                async for piece in stream:
                    self._came.append((place, piece))
                    self._news.set()
        except ValueError as error:
            self._error = self._error or refused(error)
        except Exception as error:  # noqa: BLE001 - `take` raises it
            self._error = self._error or error
        finally:
            self._left -= 1
            self._news.set()


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
