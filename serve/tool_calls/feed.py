"""Text that comes in pieces, for readers written as if all of it were there; and JSON values in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from fastslow.engine.text.vocabulary import hold_back

T = TypeVar("T")
Reading = Generator[None, None, T]  # yields where it needs more text
Sink = Callable[[str], None]
SPACE = re.compile(r"[ \t\r\n]+")
PLAIN = re.compile(r'[^"\\]+')  # in a string
BETWEEN = re.compile(
    r"[ \t\r\n,:0-9E+.\-truefalsn]+"
)  # strings and brackets: numbers, true, false, null
SCALAR = re.compile(r"[0-9E+.\-truefalsn]+")
CLOSES = {"{": "}", "[": "]"}
MOST_DEPTH = 1000  # brackets within each other


class Feed:
    """The text that was not read yet. No character is read more than a few times, however it is cut.

    Attributes:
        ended: no more comes.
        scanned: characters looked at so far.
    """

    def __init__(self) -> None:
        self.ended = False
        self.scanned = 0
        self._text = ""
        self._place = 0
        self._kept: list[str] = []

    def add(self, piece: str) -> None:
        """More text; what is left of the earlier one is at most the beginning of a mark."""
        self.scanned += len(self._text) - self._place + len(piece)
        self._text, self._place = self._text[self._place :] + piece, 0

    def keep(self, begun: str = "") -> None:
        """From here on what is read is kept, after what `begun` it."""
        self._kept = [begun]

    def kept(self) -> str:
        """All that was read since `keep`."""
        kept, self._kept = "".join(self._kept), []
        return kept

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while self._place >= len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._place]

    def take(self, pattern: re.Pattern[str]) -> str:
        """What the pattern matches here of the text so far, maybe nothing."""
        found = pattern.match(self._text, self._place)
        taken = found[0] if found is not None else ""
        self.scanned += len(taken) + 1
        self._place += len(taken)
        self._kept.append(taken)
        return taken

    def run(self, pattern: re.Pattern[str], sink: Sink = lambda text: None) -> Reading[str]:
        """Give `sink` all of a run of characters; returns the next other one."""
        while (letter := (yield from self.peek())) and (taken := self.take(pattern)):
            sink(taken)
        return letter

    def literal(self, text: str) -> Reading[bool]:
        """Whether this text comes next; what of it does is read."""
        for letter in text:
            if (yield from self.peek()) != letter:
                return False
            self._step(letter)
        return True

    def letter(self) -> Reading[str]:
        """The next character, read."""
        letter = yield from self.peek()
        self._step(letter)
        return letter

    def until(self, marks: SearchedMarks, sink: Sink) -> Reading[str]:
        """Give the text before the first of the marks to `sink`; returns the mark, "" at the end."""
        while True:
            yield from self.peek()
            text, begun = self._text, self._place
            found = marks.pattern.search(text, begun)
            self.scanned += (len(text) if found is None else found.end()) - begun
            if found is not None:
                sink(text[begun : found.start()])
                self._place = found.end()
                return found[0]
            tail = text[max(begun, len(text) - marks.longest) :]
            self._place = len(text) - (0 if self.ended else hold_back(tail, marks.texts))
            sink(text[begun : self._place])
            if self.ended:
                return ""
            yield

    def _step(self, letter: str) -> None:
        self._place += len(letter)
        self.scanned += 1
        self._kept.append(letter)


class SearchedMarks:
    """Texts that are looked for."""

    def __init__(self, *texts: str) -> None:
        self.texts = tuple(text for text in texts if text)
        self.longest = max(map(len, self.texts), default=0)
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) or "(?!)")


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
