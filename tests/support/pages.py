"""The parts of a page of docs/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NOT_RUN = "<!-- not run: "


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int  # of its first line of text, from 1
    text: str
    runs: bool  # False: the page says why not


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text("utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        before = lines[start - 1] if start else ""
        text = "\n".join(lines[start + 1 : number])
        yield Block(lines[start][3:].strip(), start + 2, text, not before.startswith(NOT_RUN))
        start = None


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line
