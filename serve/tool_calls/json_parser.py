"""Calls that are JSON objects with a name and arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fastslow.serve.tool_calls.feed import Feed, Reading, Sink
from fastslow.serve.tool_calls.json_values import SPACE, loaded, string, value
from fastslow.serve.tool_calls.parser import ToolParser

ARGUMENTS = ("arguments", "parameters")
FIRST = ("name", "type")  # keys that an object without a mark begins with
SYNTAX = " \t\r\n]};,"  # of an end that was cut off

# how an object ended: it was whole; at what does not fit; or the mark behind its arguments was read, too
Ending = Literal["whole", "unfit", "over"]
Reader = Callable[[Feed, Sink], Reading[bool]]


class JsonParser(ToolParser):
    """Objects between marks, one or several, in a list or not."""

    def _section(self, bare: bool = False) -> Reading[None]:
        feed, end, before = self.feed, self._form.end, self._count
        listed = (yield from feed.run(SPACE)) == "["
        if listed:
            yield from feed.letter()
        between = "," if end else ",;"
        while letter := (yield from feed.run(SPACE)):
            made = self._count > before
            if letter == "{":
                ending = yield from self._object(bare)
                if ending == "over":
                    return
                if ending == "unfit":
                    break
                feed.keep()
            elif made and (letter in between or (listed and letter == "]")):
                yield from feed.letter()
            else:
                break
        ended = bool(end) and (yield from feed.literal(end))
        made, rest = self._count > before, feed.kept()
        cut = feed.ended and end.startswith(rest.lstrip(SYNTAX))
        if not made or not (ended or cut):
            self._say(rest)

    def _object(self, bare: bool) -> Reading[Ending]:
        feed = self.feed
        name, arguments, begun, first = None, "{}", False, True
        yield from feed.letter()
        while letter := (yield from feed.run(SPACE)):
            if letter == "}":
                if name is None:
                    return "unfit"
                yield from feed.letter()
                if not begun:
                    self._begun(name)
                    self._more(arguments)
                    self._closed()
                return "whole"
            if letter == "," and not first:
                yield from feed.letter()
                continue
            key = loaded((yield from self._text(string))) if letter == '"' else None
            if key is None or (bare and first and key not in FIRST):
                return "unfit"
            first = False
            if (yield from feed.run(SPACE)) != ":":
                return "unfit"
            yield from feed.letter()
            letter = yield from feed.run(SPACE)
            if key in ARGUMENTS and name is not None and letter == "{" and not begun:
                begun = True
                self._begun(name)
                if (ending := (yield from self._arguments())) != "whole":
                    return ending
                continue
            text = yield from self._text(value)
            if key == "name" and name is None:
                name = loaded(text)
                if not isinstance(name, str) or name not in self._names:
                    return "unfit"
            elif key in ARGUMENTS and not begun:
                if (found := as_arguments(text)) is None:
                    return "unfit"
                arguments = found
            elif not text:
                return "unfit"
        return "unfit"

    def _arguments(self) -> Reading[Ending]:
        """Pass on a call's arguments, to the end mark where they are no JSON."""
        if (yield from value(self.feed, self._more)):
            self._closed()
            return "whole"
        if (yield from self.feed.until(self._end, self._more)):
            self._closed()
        return "over"

    def _text(self, read: Reader) -> Reading[str]:
        """A value's text; "" where it is none."""
        parts: list[str] = []
        return "".join(parts) if (yield from read(self.feed, parts.append)) else ""


def as_arguments(text: str) -> str | None:
    """Arguments that were read as a whole: an object, one in a string, or null. None: something else."""
    found = loaded(text)
    if isinstance(found, str):
        text, found = found, loaded(found)
    if isinstance(found, dict):
        return text
    return "{}" if text.strip() in ("null", "") and text else None
