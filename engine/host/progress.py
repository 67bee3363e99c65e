"""Progress of a job: a bar on terminals and in notebooks, elsewhere a line of the log now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track

T = TypeVar("T")
Report = Callable[[float, str], None]  # the share that is done, 0 to 1, and what runs now

EVERY = 10.0  # seconds between two lines


def silent(share: float, text: str) -> None:
    """For callers that show nothing."""


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Show a bar, or lines, while the block runs; the block calls what it is given to move the bar and to change
    the words beside it."""
    if (console := _screen()) is None:
        with _lines() as say:
            yield lambda share, text: say(f"{share:.0%}, {text}")
        return
    columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("getting ready", total=1.0)
        yield lambda share, text: shown.update(task, completed=share, description=text)


def bar(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a bar or lines while they are gone through.

    total: how many there are, where they do not say it themselves."""
    if (console := _screen()) is None:
        return _counted(items, description, len(items) if isinstance(items, Sized) else total)
    return track(items, description, total=total, console=console, transient=True)


def _counted(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    with _lines() as say:
        for number, item in enumerate(items):
            say(f"{description}: {number}" + (f" of {total}" if total else ""))
            yield item


def _screen() -> Console | None:
    """Standard error, if bars can be drawn there."""
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


@contextmanager
def _lines() -> Iterator[Callable[[str], None]]:
    """Every EVERY seconds the log gets what the block said last."""
    begun, said, over = time.monotonic(), ["getting ready"], Event()

    def speak() -> None:
        while not over.wait(EVERY):
            logger.info("{}, after {:.0f} s", said[0], time.monotonic() - begun)

    thread = Thread(target=speak, name="fastslow-progress", daemon=True)
    thread.start()
    try:
        yield lambda text: said.__setitem__(0, text)
    finally:
        over.set()
        thread.join()
