"""Reads JSON values from a text that grows, as models write them: what fits no value ends it."""

from __future__ import annotations

import json
import re
from typing import Any

from fastslow.serve.tool_calls.feed import Feed, Reading, Sink

SPACE = re.compile(r"[ \t\r\n]+")
PLAIN = re.compile(r'[^"\\]+')  # in a string
BETWEEN = re.compile(
    r"[ \t\r\n,:0-9E+.\-truefalsn]+"
)  # strings and brackets: numbers, true, false, null
SCALAR = re.compile(r"[0-9E+.\-truefalsn]+")
CLOSES = {"{": "}", "[": "]"}
MOST_DEPTH = 1000  # brackets within each other


def value(feed: Feed, sink: Sink) -> Reading[bool]:
    """Give a value's text to `sink` as it comes. False: what comes next belongs to no value."""
    letter = yield from feed.peek()
    if letter == '"':
        return (yield from string(feed, sink))
    if letter not in CLOSES:
        return (yield from _scalar(feed, sink))
    open_: list[str] = []
    while letter := (yield from feed.peek()):
        if letter == '"':
            if not (yield from string(feed, sink)):
                return False
        elif letter in CLOSES and len(open_) < MOST_DEPTH:
            open_.append(CLOSES[letter])
            sink((yield from feed.letter()))
        elif letter == open_[-1]:
            open_.pop()
            sink((yield from feed.letter()))
            if not open_:
                return True
        elif taken := feed.take(BETWEEN):
            sink(taken)
        else:
            return False
    return False


def string(feed: Feed, sink: Sink) -> Reading[bool]:
    """The same for a string, which comes next."""
    sink((yield from feed.letter()))
    while letter := (yield from feed.peek()):
        if letter == '"':
            sink((yield from feed.letter()))
            return True
        if letter == "\\":
            first = yield from feed.letter()
            sink(first + (yield from feed.letter()))
        else:
            sink(feed.take(PLAIN))
    return False


def _scalar(feed: Feed, sink: Sink) -> Reading[bool]:
    read = False
    while (yield from feed.peek()) and (taken := feed.take(SCALAR)):
        sink(taken)
        read = True
    return read


def loaded(text: str) -> Any:
    """A value, control characters in strings allowed; None where it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
