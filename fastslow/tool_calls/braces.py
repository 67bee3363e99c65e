"""Arguments in braces whose keys have no quotes, and whose strings stand between marks: `{city:<|"|>Rome<|"|>,days:2}`.
Read as JSON, and as a grammar that a schema gives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple

QUOTE = '<|"|>'
SIGNS = {"{": "{", "}": "}", "[": "[", "]": "]", ",": ", ", ":": ": "}
BARE = re.compile(r"<|[^{}\[\],:<]{1,256}")
WORDS = "true", "false", "null"
HELD = "type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"
DEEPEST = 8  # levels of objects and arrays that are held to a schema


class Read(NamedTuple):
    """JSON of the first `length` characters of a text; how deep braces are open after them. searched: how far the rest
    has no end of the string that it begins with."""

    text: str
    length: int
    depth: int
    searched: int = 0


def read(text: str, depth: int, searched: int = 0) -> Read:
    """Read what is certain whatever comes next, up to the end of the arguments."""
    place, found = 0, ""
    while place < len(text) and (depth or not place):
        if text.startswith(QUOTE, place):
            end = text.find(QUOTE, max(place + len(QUOTE), searched))
            if end < 0:
                return Read(found, place, depth, len(text) - len(QUOTE) - place)
            found += json.dumps(text[place + len(QUOTE) : end], ensure_ascii=False)
            place = end + len(QUOTE)
        elif (sign := text[place]) in SIGNS:
            depth += (sign in "{[") - (sign in "}]")
            found += SIGNS[sign]
            place += 1
        else:
            word = BARE.match(text, place)
            if QUOTE.startswith(text[place : place + 6]) or word is None or word.end() == len(text):
                break
            found += _json(word[0].strip(), text[word.end()] == ":")
            place = word.end()
    return Read(found, place, depth)


def _json(word: str, key: bool) -> str:
    if not word:
        return ""
    try:
        number = json.loads(word, parse_constant=str)  # NaN is no JSON
        whole = word in WORDS or isinstance(number, int | float)
    except ValueError:
        whole = False
    return word if whole and not key else json.dumps(word, ensure_ascii=False)


class BraceRules:
    """Rules of values, for llguidance's Lark. quote: the mark around strings, as the grammar writes it; token: it is a
    special token. whole: the schema that has `$defs`. rules: all that were made."""

    def __init__(self, quote: str, token: bool) -> None:
        self._quote, self._token, self._numbers = quote, token, count()
        self._whole: Mapping[str, Any] = {}
        self.rules = ["KEY: /[^{}\\[\\],:<>|\\s]+/"]
        pairs = '"{" (KEY ":" any ("," KEY ":" any)*)? "}"'
        simple = " | ".join((self._string(), '%json {"type": "number"}', *map(json.dumps, WORDS)))
        self.rules.append(f'any: {simple} | "[" (any ("," any)*)? "]" | {pairs}')

    def arguments(self, schema: Mapping[str, Any]) -> str:
        """The grammar of an object that fits a schema."""
        self._whole = schema
        return self._object({"properties": {}, **schema}, DEEPEST)

    def _value(self, schema: Any, depth: int) -> str:
        """As far as types, words, counts and objects go; below `depth` levels anything."""
        known = schema if isinstance(schema, Mapping) and depth else {}
        if isinstance(named := known.get("$ref"), str):
            *_, place, name = ("", *named.split("/"))
            return self._value(self._whole.get(place, {}).get(name), depth - 1)
        words = [known["const"]] if "const" in known else known.get("enum")
        if isinstance(words, list) and words:
            return f"({' | '.join(map(self._word, words))})"
        kind, several = known.get("type"), known.get("anyOf") or known.get("oneOf")
        if isinstance(kind, list):
            several = [{**known, "type": one} for one in kind]
        if isinstance(several, list):
            return f"({' | '.join(self._value(one, depth - 1) for one in several)})"
        match kind:
            case "string":
                return self._string()
            case "array":
                return self._array(known, depth)
            case "object" if isinstance(known.get("properties"), Mapping):
                return self._object(known, depth)
            case "integer" | "number" | "boolean" | "null":
                return f"%json {json.dumps({k: v for k, v in known.items() if k in HELD})}"
        return "any"

    def _word(self, word: Any) -> str:
        text = json.dumps(word, ensure_ascii=False)
        return f"{self._quote} {text} {self._quote}" if isinstance(word, str) else json.dumps(text)

    def _string(self) -> str:
        if self._token:
            return f"{self._quote} TEXT {self._quote}"
        name = f"s{next(self._numbers)}"
        self.rules.append(f"{name}[suffix={self._quote}]: TEXT")
        return f"{self._quote} {name}"

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        item = self._named(self._value(schema.get("items"), depth - 1))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        more = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        return f'"[" ({item} ("," {item}){more}){"" if least else "?"} "]"'

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        """Keys in the order of letters, as templates write them. first: what may stand where none is written yet."""
        must, first, after = False, "", ""
        properties, needed = schema["properties"], schema.get("required") or ()
        for key in sorted(properties, key=str.lower, reverse=True):
            held = self._value(properties[key], depth - 1)
            one = f"{json.dumps(key + ':', ensure_ascii=False)} {held}"
            if key in needed:
                must, first, after = True, f"{one} {after}", f'"," {one} {after}'
            else:
                rest, may = f" | {first}" if first else "", "" if must else "?"
                first, after = f"({one} {after}{rest}){may}", f'("," {one})? {after}'
            first, after = self._named(first), self._named(after)
        return f'"{{" {first} "}}"'

    def _named(self, text: str) -> str:
        name = f"o{next(self._numbers)}"
        self.rules.append(f"{name}: {text}")
        return name
