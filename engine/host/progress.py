"""A progress bar, on terminals only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def bar(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a bar on stderr while they are gone through, if that is a terminal.

    total: how many there are, where they do not say it themselves."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, description, total=total, console=console, transient=True)
