"""Finds calls in the text of an answer, as the grammar of `lark.py` makes the model write them. What they are depends
on the text alone, not on how it is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.engine.text.vocabulary import hold_back
from fastslow.tool_calls import braces

Functions = Mapping[str, Mapping[str, Any]]  # the schema of each function's parameters
Kind = Literal["text", "call", "arguments"]
Event = tuple[Kind, str]
"""More of what is said; a call of this function begins; more of its arguments, which are JSON text."""

LONGEST_HEAD = 256  # characters from a mark to the arguments of its call
HEADS = {
    "json": re.compile(
        r'[\s\[]{0,9}\{\s{0,9}"name":\s{0,9}"([\w-]{1,64})",\s{0,9}"\w{1,20}":\s{0,9}(?=\{)'
    ),
    "messages": re.compile(
        r"\w{0,20}(?:<\|channel\|>)?[\w ]{0,40}\bto=functions\.([\w-]{1,64})[\w ]{0,20}"
        r"(?:<\|constrain\|>)?\w{0,20}<\|message\|>(?=\{)"
    ),
    "xml": re.compile(r"\s{0,9}<function=([\w-]{1,64})>\n"),
    "pairs": re.compile(r"\s{0,9}([\w-]{1,64})\s{0,9}(?=<)"),
    "invoke": re.compile(r'\s{0,9}<invoke name="([\w-]{1,64})">'),
    "braces": re.compile(r"\s{0,9}call:([\w-]{1,64})(?=\{)"),
    "named": re.compile(r"\s{0,9}([\w-]{1,64})(?:\[CALL_ID\]\w{1,64})?\[ARGS\]\s{0,9}(?=\{)"),
}
STRUCTURE, IN_STRING = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


class ElementPatterns(NamedTuple):
    """What stands before a value, with its parameter's name; what ends the value; and what ends the function."""

    parameter: re.Pattern[str]
    value_ends: str
    ends: re.Pattern[str]


ELEMENTS = {
    "xml": ElementPatterns(
        re.compile(r"\s*<parameter=([^<>\n]+)>\n"),
        "\n</parameter>\n",
        re.compile(r"\s*</function>"),
    ),
    "pairs": ElementPatterns(
        re.compile(r"\s*<arg_key>([^<>\n]+)</arg_key>\s*<arg_value>"),
        "</arg_value>",
        re.compile(r"\s*(?=</tool_call>)"),
    ),
    "invoke": ElementPatterns(
        re.compile(r'\s*<parameter name="([^<>"\n]+)">'),
        "</parameter>",
        re.compile(r"\s*</invoke>"),
    ),
}
AGAIN = {"json": "{", "invoke": "<invoke "}  # begins one more call between the same marks
BETWEEN = " \t\r\n}],;"  # after the arguments of a call


class ToolParser:
    """Reads one answer. Text that only looks like a call, or is left after one, is content. Whitespace at the end of
    the content is dropped where there are calls. form: how the model writes calls. functions: the schema of the
    parameters, by function."""

    def __init__(self, form: ToolFormat, functions: Functions) -> None:
        self.form, self._functions = form, functions
        self._ends = tuple(mark for mark in (form.end, *form.stops) if mark)
        self._text = ""  # that was not read yet
        self._mark = ""  # before it
        self._read = self._bare if form.bare else self._outside
        self._events: list[Event] = []
        self._spaces = ""  # at the end of the content
        self._name, self._calls, self._ended = "", 0, False
        self._depth, self._quoted = 0, False  # in the JSON of arguments
        self._searched, self._comma = 0, ""  # in the elements of arguments

    def push(self, text: str) -> list[Event]:
        """Take more text; returns what is certain by now."""
        self._text += text
        while self._read():  # one part of the answer; False: it needs more text
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """The rest, at the end of the text."""
        self._ended = True
        events = self.push("")
        if self._spaces and not self._calls:
            events.append(("text", self._spaces))
        self._spaces = ""
        return events

    def _bare(self) -> bool:
        """The beginning of an answer that may be a call without a mark."""
        begun = self._text.lstrip()
        if not begun and not self._ended:
            return False
        self._read = self._call if begun[:1] in ("{", "[") else self._outside
        return True

    def _outside(self) -> bool:
        before, self._mark, after = self._text.partition(self.form.begin)
        if self._mark:
            self._say(before)
            self._text, self._read = after, self._call
            return True
        held = 0 if self._ended else hold_back(before, (self.form.begin,))
        self._say(before[: len(before) - held])
        self._text = before[len(before) - held :]
        return False

    def _call(self) -> bool:
        """After a mark: the head of a call, or text that only looks like a call."""
        found = HEADS[self.form.kind].match(self._text)
        if found and found[1] in self._functions:
            self._name, self._text = found[1], self._text[found.end() :]
            self._calls += 1
            self._events.append(("call", self._name))
            if self.form.kind in ELEMENTS:
                self._more("{")
                self._read, self._searched, self._comma = self._element, 0, ""
            else:
                self._searched = 0
                self._read = self._braces if self.form.kind == "braces" else self._json
            return True
        if len(self._text) < LONGEST_HEAD and not self._ended:
            return False
        self._say(self._mark)
        self._read = self._outside
        return True

    def _json(self) -> bool:
        """The object of the arguments, passed on as it comes."""
        place = 0
        while found := (IN_STRING if self._quoted else STRUCTURE).search(self._text, place):
            place = found.end()
            match found[0]:
                case '"':
                    self._quoted = not self._quoted
                case "\\":
                    place += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth == 0:
                        self._more(self._text[:place])
                        self._text, self._read = self._text[place:], self._after
                        return True
        held = place > len(self._text) and not self._ended  # an escape whose character has not come
        cut = len(self._text) - held
        self._more(self._text[:cut])
        self._text = self._text[cut:]
        return False

    def _braces(self) -> bool:
        """The object of the arguments, whose keys have no quotes."""
        found = braces.read(self._text, self._depth, self._searched)
        self._more(found.text)
        self._text, self._depth = self._text[found.length :], found.depth
        self._searched = found.searched
        if found.length and not found.depth:
            self._read = self._after
            return True
        return False

    def _element(self) -> bool:
        """Read one argument between its tags, or the end of the function. False: nothing was read."""
        parameter, value_ends, ends = ELEMENTS[self.form.kind]
        if found := parameter.match(self._text):
            end = self._text.find(value_ends, max(found.end() - 1, self._searched))
            if end < 0:
                self._searched = len(self._text) - len(value_ends)
                return False
            value = _typed(self._text[found.end() : end], self._functions[self._name], found[1])
            self._more(f"{self._comma}{json.dumps(found[1])}: {value}")
            self._text, self._searched = self._text[end + len(value_ends) :], 0
            self._comma = ", "
            return True
        if found := ends.match(self._text):
            self._more("}")
            self._text = self._text[found.end() :]
        elif self._ended or len(self._text) < LONGEST_HEAD:
            return False
        self._read = self._after
        return True

    def _after(self) -> bool:
        """Between a call and the next one, or the mark that ends them."""
        self._text, again = self._text.lstrip(BETWEEN), AGAIN.get(self.form.kind, "")
        if any(mark.startswith(self._text) and mark != self._text for mark in (again, *self._ends)):
            self._text = "" if self._ended else self._text
            return False
        if again and self._text.startswith(again):
            self._mark, self._read = "", self._call
            return True
        end = next((mark for mark in self._ends if self._text.startswith(mark)), "")
        self._text, self._read = self._text[len(end) :], self._outside
        return True

    def _say(self, text: str) -> None:
        said = text.rstrip()
        if said:
            self._add("text", self._spaces + said)
            self._spaces = ""
        self._spaces += text[len(said) :]

    def _more(self, text: str) -> None:
        if text:
            self._add("arguments", text)

    def _add(self, kind: Kind, text: str) -> None:
        """As one with what was found before, where that is of the same kind."""
        if self._events and self._events[-1][0] == kind:
            text = self._events.pop()[1] + text
        self._events.append((kind, text))


def _typed(text: str, schema: Mapping[str, Any], key: str) -> str:
    """A parameter's value as JSON: a string where the schema wants one, else as it stands."""
    properties = schema.get("properties")
    known = properties.get(key) if isinstance(properties, Mapping) else None
    known = known if isinstance(known, Mapping) else {}
    words = known.get("enum") or [known.get("const")]
    if known.get("type") != "string" and not (isinstance(words, list) and text in words):
        try:
            return json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)
