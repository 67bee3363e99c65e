"""Finds calls in the text of an answer. What they are depends on the text alone, not on how it is cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.serve.tool_calls.events import CallBegun, CallMore, Content, Event, joined, new_id
from fastslow.serve.tool_calls.feed import SPACE, Feed, Reading, SearchedMarks


class ToolParser(ABC):
    """Reads one answer.

    A call begins with the name of a function that was offered. From there on it is a call, and its
    arguments are passed on as they are written, whether they are valid or not. Everything else is
    content: what looks like a call but has no such beginning, and what is left of one after its
    arguments. Whitespace at the end of the content is dropped where there are calls.

    Args:
        form: how the model writes calls.
        names: the functions that were offered.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.feed = Feed()
        self._form = form
        self._names = frozenset(names)
        self._begin, self._end = SearchedMarks(form.begin), SearchedMarks(form.end)
        self._events: list[Event] = []
        self._spaces: list[str] = []  # at the end of the content
        self._count = 0
        self._open = False  # a call's arguments are being read
        self._reading = self._read()
        next(self._reading)

    @property
    def complete(self) -> bool:
        """No call is open."""
        return not self._open

    def push(self, text: str) -> list[Event]:
        """Take more text; returns what is certain by now."""
        if text:
            self.feed.add(text)
            self._reading.send(None)
        return self._news()

    def finish(self) -> list[Event]:
        """The rest, at the end of the text."""
        if not self.feed.ended:
            self.feed.ended = True
            for _ in self._reading:
                raise RuntimeError("a reader waits for text after the end")
            if not self._count:
                self._events.append(Content("".join(self._spaces)))
            self._spaces = []
        return self._news()

    def _news(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events)

    def _read(self) -> Reading[None]:
        if self._form.bare:
            self.feed.keep()
            if (yield from self.feed.run(SPACE)) in ("{", "["):
                yield from self._section(bare=True)
            else:
                self._say(self.feed.kept())
        while (yield from self.feed.until(self._begin, self._say)):
            self.feed.keep(self._form.begin)
            yield from self._section()

    @abstractmethod
    def _section(self, bare: bool = False) -> Reading[None]:
        """Calls after the mark, up to the one that ends them; `bare`: there was no mark."""

    def _say(self, text: str) -> None:
        said = text.rstrip()
        if said:
            self._events.append(Content("".join([*self._spaces, said])))
            self._spaces = []
        self._spaces.append(text[len(said) :])

    def _begun(self, name: str) -> None:
        self._events.append(CallBegun(self._count, new_id(self._form.id_length), name))
        self._count += 1
        self._open = True

    def _more(self, text: str) -> None:
        self._events.append(CallMore(self._count - 1, text))

    def _closed(self) -> None:
        """A call's arguments are whole."""
        self._open = False
        self.feed.keep()
