"""Grammars that hold a model to calls of the functions that are offered, in llguidance's form of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastslow.engine.text.thought import BODY, CHANNEL, END, START
from fastslow.engine.text.tool_formats import ToolFormat
from fastslow.tool_calls.braces import QUOTE, BraceRules

Schemas = Mapping[str, Mapping[str, Any]]  # of arguments, by function
TEXT = "TEXT: /(.|\\n)*/"
BARE = '{"name": "'  # where calls need no mark, an answer that begins so is one
CONSTRAIN = "<|constrain|>"
NEEDED = START, CHANNEL, BODY, END, CONSTRAIN


def quoted(text: str) -> str:
    """A text as the grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


class ElementGrammar(NamedTuple):
    """What the grammar writes around a function's name, around a parameter's, after its value, and at the end of the
    function; `begin`: after the mark."""

    begin: str
    name: tuple[str, str]
    key: tuple[str, str]
    value: str
    next: str  # after the end of a value
    end: str


LINE = quoted("\n")
CLOSE = "braces", "named"  # kinds of formats with nothing between calls and marks
ELEMENTS = {  # of formats with elements
    "xml": ElementGrammar(
        LINE,
        (quoted("<function="), quoted(">\n")),
        (quoted("<parameter="), quoted(">\n")),
        quoted("\n</parameter>\n"),
        "",
        quoted("</function>\n"),
    ),
    "pairs": ElementGrammar(  # some versions write it in one line
        "",
        ("", f"{LINE}?"),
        (quoted("<arg_key>"), f"{quoted('</arg_key>')} {LINE}? {quoted('<arg_value>')}"),
        quoted("</arg_value>"),
        f"{LINE}?",
        "",
    ),
    "invoke": ElementGrammar(
        LINE,
        (quoted('<invoke name="'), quoted('">\n')),
        (quoted('<parameter name="'), quoted('">')),
        quoted("</parameter>"),
        LINE,
        quoted("</invoke>\n"),
    ),
}


class CallGrammar:
    """Writes the grammar of one request. form: how the model writes calls. tokens: the marks that are special tokens.
    schemas: of the functions that may be called. parallel: several calls are allowed."""

    def __init__(
        self, form: ToolFormat, tokens: Mapping[str, int], schemas: Schemas, parallel: bool
    ) -> None:
        self._form = form
        self._begin = _mark(form.begin, tokens)
        self._end = _mark(form.end, tokens) if form.end else ""
        self._has_token = form.begin in tokens
        self._parallel = parallel
        self._many = parallel and not form.listed and not form.bare  # each call has its own marks
        functions = self._element if form.kind in ELEMENTS else self._object
        self._rules = [TEXT, f"call: {_each('f', schemas)}"]
        if form.kind == "braces":
            self._braces = BraceRules(_mark(QUOTE, tokens), QUOTE in tokens)
            functions = self._braced
        if form.kind == "named":
            self._arguments = _mark("[ARGS]", tokens)
            functions = self._named
        for place, (name, schema) in enumerate(schemas.items()):
            functions(place, name, schema)
        self._rules += self._braces.rules if form.kind == "braces" else []

    def required(self) -> str:
        """At least one call, and nothing else."""
        return self._whole(self._starts()[0])

    def auto(self, answer: Mapping[str, Any] | None = None) -> str:
        """Text that becomes a call where its mark begins. `answer`: a schema for an answer without calls. Raises
        ValueError where the two look alike."""
        if answer is not None and self._form.bare:
            raise ValueError(
                "this model's calls are JSON without a mark, so its other answers cannot be held to a schema"
            )
        if answer is not None:
            self._rules.append(f"answer: %json {json.dumps(answer)}")
            return self._whole(f"answer | {' | '.join(self._starts())}")
        if self._form.bare:
            self._rules.append(f"head[lazy]: {quoted(BARE)}")
            return self._whole(f"TEXT | {' | '.join(['head body', *self._starts()[1:]])}")
        begun = f"TEXT {self._begin}"
        if not self._has_token:
            self._rules.append(f"head[lazy]: {begun}")
            begun = "head"
        return self._whole(f"({begun} body)* rest" if self._many else f"rest | {begun} body")

    def _starts(self) -> list[str]:
        """Return the grammar's alternatives for an answer that begins with a call."""
        if not self._form.bare:
            between = "" if self._form.kind in CLOSE else quoted("\n")
            many = f" ({between} {self._begin} body)*" if self._many else ""
            return [f"{self._begin} body{many}"]
        marked = [f"{self._begin} {quoted(BARE)} body"] if self._has_token else []
        return [f"{quoted(BARE)} body", *marked]

    def _whole(self, start: str) -> str:
        return "\n".join([f"start: {start}", "rest: TEXT", f"body: {self._body()}", *self._rules])

    def _body(self) -> str:
        """Return the grammar of what stands between the marks of a call."""
        form, other = self._form, f"{quoted(BARE)} call"
        if form.kind in ELEMENTS:
            more = "+" if form.listed and self._parallel else ""
            return f"{ELEMENTS[form.kind].begin} call{more} {self._end}"
        if form.kind in CLOSE:
            return f"call {self._end}"
        if form.bare:
            return f"call ({quoted('; ')} {other})*" if self._parallel else "call"
        if form.listed:
            more = f" ({quoted(', ')} {other})*" if self._parallel else ""
            space = "" if self._end else f"{quoted(' ')}? "
            return f"{space}{quoted('[' + BARE)} call{more} {quoted(']')} {self._end}"
        return f"{quoted(chr(10) + BARE)} call {quoted(chr(10))} {self._end}"

    def _object(self, place: int, name: str, schema: Mapping[str, Any]) -> None:
        """An object from its name on."""
        middle = f'{name}", "{self._form.key}": '
        self._rules.append(f"f{place}: {quoted(middle)} a{place} {quoted('}')}")
        self._rules.append(f"a{place}: %json {json.dumps(schema)}")

    def _named(self, place: int, name: str, schema: Mapping[str, Any]) -> None:
        self._rules.append(f"f{place}: {quoted(name)} {self._arguments} %json {json.dumps(schema)}")

    def _braced(self, place: int, name: str, schema: Mapping[str, Any]) -> None:
        whole = self._braces.arguments(schema)
        self._rules.append(f"f{place}: {quoted(f'call:{name}')} {whole}")

    def _element(self, place: int, name: str, schema: Mapping[str, Any]) -> None:
        """A function with an element for each of its parameters."""
        properties, required = schema.get("properties"), schema.get("required")
        written = ELEMENTS[self._form.kind]
        parts = [written.name[0], quoted(name), written.name[1]]
        known = properties if isinstance(properties, Mapping) else {}
        for number, (key, inner) in enumerate(known.items()):
            rule = f"p{place}_{number}"
            before = f"{written.key[0]} {quoted(key)} {written.key[1]}"
            self._rules.append(f"{rule}: {before} {rule}v {written.next}")
            self._value(f"{rule}v", inner, schema, written.value)
            parts.append(rule if isinstance(required, list) and key in required else f"{rule}?")
        self._rules.append(f"f{place}: {' '.join(parts)} {written.end}")

    def _value(self, rule: str, inner: Any, schema: Mapping[str, Any], end: str) -> None:
        """The value of one parameter and the end of its element."""
        known = inner if isinstance(inner, Mapping) else {}
        words = [known["const"]] if "const" in known else known.get("enum")
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            self._rules.append(f"{rule}: ({' | '.join(map(quoted, words))}) {end}")
        elif known.get("type") == "string":
            self._rules.append(f"{rule}[suffix={end}]: TEXT")
        else:
            defs = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
            whole = {**defs, **known, "x-guidance": schema["x-guidance"]}
            self._rules.append(f"{rule}: %json {json.dumps(whole)} {end}")


class ChannelGrammar:
    """The same for messages to functions. It begins after the analysis; an answer has one call. tokens: the marks
    that are special tokens, all of NEEDED among them. schemas: of the functions that may be called."""

    def __init__(self, tokens: Mapping[str, int], schemas: Schemas) -> None:
        start, self._channel, self._body, self._end, form = (_mark(m, tokens) for m in NEEDED)
        self._rules = [TEXT, f"next: {start} {quoted('assistant')}"]
        for place, (name, schema) in enumerate(schemas.items()):
            header = f"{quoted(name + ' ')} {form} {quoted('json')} {self._body}"
            self._rules.append(f"f{place}: {header} %json {json.dumps(schema)}")
        to = quoted("commentary to=functions.")
        self._rules.append(f"call: {self._channel} {to} ({_each('f', schemas)})")

    def required(self) -> str:
        """A call."""
        return self._whole("next call")

    def auto(self, answer: Mapping[str, Any] | None = None) -> str:
        """A call, with or without a word to the user before it, or an answer; `answer`: its schema."""
        said = "TEXT" if answer is None else f"%json {json.dumps(answer)}"
        self._rules.append(f"final: {self._channel} {quoted('final')} {self._body} {said}")
        word = f"{self._channel} {quoted('commentary')} {self._body} TEXT {self._end}"
        self._rules.append(f"word: {word}")
        return self._whole("next (word next)? (call | final)")

    def _whole(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])


def _mark(mark: str, tokens: Mapping[str, int]) -> str:
    return f"<[{tokens[mark]}]>" if mark in tokens else quoted(mark)


def _each(letter: str, schemas: Schemas) -> str:
    return " | ".join(f"{letter}{place}" for place in range(len(schemas)))
