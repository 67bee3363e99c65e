"""A progress bar, on terminals only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def bar(items: Sequence[T], description: str) -> Iterable[T]:
    """The items, with a bar on stderr while they are gone through, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, description, console=console, transient=True)
