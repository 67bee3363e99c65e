"""Calls with one element for each argument: Qwen3-Coder's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.serve.tool_calls.feed import Reading, SearchedMarks
from fastslow.serve.tool_calls.json_values import SPACE, loaded
from fastslow.serve.tool_calls.parser import ToolParser

NAME = re.compile(r"[^<>\n]+")
VALUE_ENDS = SearchedMarks("\n</parameter>", "</parameter>")
WORDS = {"null": None, "None": None, "True": True, "False": False}


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
