"""A progress bar for jobs of minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[float, str], None]  # the share that is done, 0 to 1, and what runs now


def silent(share: float, text: str) -> None:
    """For callers that show nothing."""


@contextmanager
def progress_bar() -> Iterator[Report]:
    """One bar on standard error while the block runs, if that is a terminal; the block calls what it
    is given to move the bar and to change the words beside it."""
    console = Console(stderr=True)
    columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown:
        task = shown.add_task("getting ready", total=1.0)
        yield lambda share, text: shown.update(task, completed=share, description=text)
