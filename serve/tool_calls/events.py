"""What an answer turns out to be while it comes: content, and calls that begin and grow."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Content:
    """More of what is said."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a function that was offered."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallMore:
    """More of a call's arguments, which are JSON text."""

    index: int
    text: str


Event = Content | CallBegun | CallMore


def new_id(length: int = 0) -> str:
    """A name for a call that no other one has; `length`: exactly this many letters, for templates that insist."""
    if length:
        return "".join(secrets.choice(LETTERS) for _ in range(length))
    return f"call_{secrets.token_hex(12)}"


def joined(events: Iterable[Event]) -> list[Event]:
    """The same with neighbours of one kind made one, and nothing empty."""
    made: list[Event] = []
    for _, group in groupby(events, key=_kind):
        first, *others = group
        if isinstance(first, CallBegun):
            made += [first, *others]
        elif text := "".join(
            event.text for event in (first, *others) if not isinstance(event, CallBegun)
        ):
            made.append(replace(first, text=text))
    return made


def _kind(event: Event) -> tuple[type, int]:
    return type(event), -1 if isinstance(event, Content) else event.index
