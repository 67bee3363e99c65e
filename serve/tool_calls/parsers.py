"""How models write calls: as JSON objects, as messages to a function, as XML elements."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastslow.engine.text.thought import BODY, CALL, END, START
from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.serve.tool_calls.feed import (
    SPACE,
    Feed,
    Reading,
    SearchedMarks,
    Sink,
    loaded,
    string,
    value,
)
from fastslow.serve.tool_calls.parser import ToolParser

ARGUMENTS = ("arguments", "parameters")
FIRST = ("name", "type")  # keys that an object without a mark begins with
SYNTAX = " \t\r\n]};,"  # of an end that was cut off

# how an object ended: it was whole; at what does not fit; or the mark after its arguments was read, too
Ending = Literal["whole", "unfit", "over"]
Reader = Callable[[Feed, Sink], Reading[bool]]
TO = re.compile(r"\bto=functions\.([\w-]+)")
HEADER_ENDS = SearchedMarks(BODY, START, END, CALL)
BODY_ENDS = SearchedMarks(START, END, CALL)
NAME = re.compile(r"[^<>\n]+")
VALUE_ENDS = SearchedMarks("\n</parameter>", "</parameter>")
WORDS = {"null": None, "None": None, "True": True, "False": False}
Functions = Mapping[str, Mapping[str, Any]]  # the schema of each function's parameters


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


class MessageParser(ToolParser):
    """The body of a message is the arguments. The splitter of channels leaves only these messages."""

    def _section(self, bare: bool = False) -> Reading[None]:
        mark = START
        while mark == START:
            header: list[str] = []
            ended = yield from self.feed.until(HEADER_ENDS, header.append)
            text = "".join(header)
            name = TO.search(text)
            if ended != BODY or name is None or name[1] not in self._names:
                self._say(START + text)
                mark = ended
                if ended != START:
                    self._say(ended)
                continue
            self._begun(name[1])
            self._body: list[str] = []
            mark = yield from self.feed.until(BODY_ENDS, self._both)
            whole = "".join(self._body)
            if not whole.strip():
                self._more("{}")
            if mark or not whole.strip() or loaded(whole) is not None:
                self._closed()

    def _both(self, part: str) -> None:
        self._body.append(part)
        self._more(part)


class XmlParser(ToolParser):
    """`<function=name><parameter=key>value</parameter></function>` between the marks. Values of strings
    are as they stand, all others JSON; arguments are made of them.

    Args:
        functions: the schema of the parameters by function.
    """

    def __init__(self, form: ToolFormat, functions: Mapping[str, Mapping[str, Any]]) -> None:
        self._functions = functions
        super().__init__(form, functions)

    def _section(self, bare: bool = False) -> Reading[None]:
        feed = self.feed
        yield from feed.run(SPACE)
        if not (yield from feed.literal("<function=")):
            return self._say(feed.kept())
        name = yield from self._name()
        if name not in self._functions:
            return self._say(feed.kept())
        self._begun(name)
        self._more("{")
        feed.keep()
        types = self._functions[name].get("properties")
        comma = ""
        while (yield from feed.run(SPACE)) == "<":
            yield from feed.letter()
            if (yield from feed.peek()) != "p":
                break
            key = yield from self._key()
            if key is None:
                break
            self._more(f"{comma}{json.dumps(key, ensure_ascii=False)}: ")
            comma = ", "
            found = types.get(key) if isinstance(types, Mapping) else None
            kind = found.get("type") if isinstance(found, Mapping) else None
            if not (yield from self._value(kind)):
                return None
            feed.keep()
        ended = yield from feed.literal("/function>")
        if not ended and feed.ended:
            return None
        self._more("}")
        self._open = False
        yield from feed.run(SPACE)
        ended &= yield from feed.literal(self._form.end)
        rest = feed.kept()
        if not ended and not feed.ended:
            self._say(rest)
        return None

    def _name(self) -> Reading[str]:
        """The name in a tag, and the tag's end."""
        parts: list[str] = []
        yield from self.feed.run(NAME, parts.append)
        return "".join(parts) if (yield from self.feed.literal(">")) else ""

    def _key(self) -> Reading[str | None]:
        if not (yield from self.feed.literal("parameter=")):
            return None
        return (yield from self._name()) or None

    def _value(self, kind: object) -> Reading[bool]:
        """Pass on one argument. False: the text ended in it."""
        feed = self.feed
        if (yield from feed.peek()) == "\n":
            yield from feed.letter()
        if kind == "string":
            self._more('"')
            ended = yield from feed.until(VALUE_ENDS, self._letters)
            self._more('"' if ended else "")
            return bool(ended)
        parts: list[str] = []
        if not (yield from feed.until(VALUE_ENDS, parts.append)):
            return False
        text = "".join(parts)
        word = text.strip()
        found = WORDS[word] if word in WORDS else loaded(word)
        if found is None and word not in WORDS:
            found = text
        self._more(json.dumps(found, ensure_ascii=False))
        return True

    def _letters(self, text: str) -> None:
        """More of a string."""
        self._more(json.dumps(text, ensure_ascii=False)[1:-1])


def parser_of(form: ToolFormat, functions: Functions) -> ToolParser:
    """A fresh parser for one answer."""
    match form.kind:
        case "json":
            return JsonParser(form, functions)
        case "messages":
            return MessageParser(form, functions)
        case "xml":
            return XmlParser(form, functions)
