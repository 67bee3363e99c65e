"""JSON schemas before they become grammars: every keyword is known, and nothing is absurdly large."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeGuard
from urllib.parse import unquote

from fastslow.engine.checked import nearest, shown

DEEPEST = 64  # schemas inside each other
MOST_KEYWORDS = 10_000
MOST_PROPERTIES = 2000  # of one object: a grammar of more takes seconds, and rows that are too long

HELD = (
    *("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "required"),
    *("properties", "patternProperties", "additionalProperties", "minProperties", "maxProperties"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
)
"""Keywords that the grammar holds an answer to."""
NOTES = (
    *("$schema", "$id", "id", "$anchor", "$comment", "$defs", "definitions", "title"),
    *("description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
    *("contentEncoding", "contentMediaType", "discriminator"),
)
"""Keywords that say nothing about what is valid."""
KNOWN = frozenset((*HELD, *NOTES))


def check_schema(text: str) -> Any:
    """The schema that a text holds. ValueError: it is no JSON, is too large, or has a keyword that the grammar would
    not hold to."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the schema is no JSON: {shown(str(error))}") from None
    todo, count = [("", schema, 1)], 0
    while todo:
        where, one, depth = todo.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, dict):
            raise ValueError(f"{where or 'the schema'} is {shown(one)}, and no JSON schema")
        if depth > DEEPEST:
            raise ValueError(f"the schema is more than {DEEPEST} levels deep")
        count += len(one)
        if count > MOST_KEYWORDS:
            raise ValueError(f"the schema has more than {MOST_KEYWORDS} keywords")
        for keyword in one:
            if keyword not in KNOWN and (keyword == "x-guidance" or not keyword.startswith("x-")):
                place, close = f"{where}.{keyword}".lstrip("."), nearest(keyword, KNOWN)
                hint = close if "did you mean" in close else ""
                raise ValueError(f"schema keyword {shown(place)} is not supported{hint}")
        for keyword in ("properties", "patternProperties", "required"):
            names = one.get(keyword)
            if isinstance(names, dict | list) and len(names) > MOST_PROPERTIES:
                said = f"{where or 'the schema'} has {len(names)} {keyword}"
                raise ValueError(f"{said}; at most {MOST_PROPERTIES} are taken")
        _check_range(where or "the schema", one)
        if isinstance(one.get("items"), list) and "prefixItems" in one:
            raise ValueError(f"{where or 'the schema'} has items as a list, and prefixItems")
        todo += [(f"{where}.{name}".lstrip("."), part, depth + 1) for name, part in parts(one)]
    check_cost(schema)
    return schema


def _check_range(where: str, schema: Mapping[str, Any]) -> None:
    """Refuse a range of numbers inside one unit whose whole end is excluded: llguidance 1.9 allows it."""
    least, most = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    below = [most, schema.get("maximum")]
    above = [least, schema.get("minimum")]
    narrow = _whole(least) and any(_number(x) and least < x < least + 1 for x in below)
    narrow |= _whole(most) and any(_number(x) and most - 1 < x < most for x in above)
    if narrow:
        raise ValueError(
            f"{where} has a range inside one unit and excludes its whole end, which cannot be held: give "
            "minimum and maximum"
        )


def _number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> TypeGuard[int | float]:
    return _number(value) and value == value // 1


MOST_MULTIPLE = 100_000  # a grammar looks at every remainder, which takes a second
MOST_MULTIPLES = 2 * MOST_MULTIPLE  # of all of them together
MOST_MEETING = 8  # expressions that one text has to match: with each more it takes twice as long
MOST_STEPS = 200_000  # through references
MOST_TEXT = 32_768  # characters of a fixed text: nothing else runs while its tokens are found

OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
OF_ONE_VALUE = ("allOf", "anyOf", "oneOf")
SEVERAL = (*OF_ONE_VALUE, "prefixItems")
EXPRESSIONS = ("pattern", "format")
EMBEDDED = re.compile(r"%json\s*")


def check_cost(schema: object) -> None:
    """Raise ValueError for a schema, valid or not, whose grammar cannot be made in reasonable time."""
    steps: list[Decimal] = []
    meeting: list[dict[str, Any]] = []  # schemas that take in others
    for one in _every(schema):
        _check_texts(one)
        step = one.get("multipleOf")
        if isinstance(step, int | float) and step > 0 and not isinstance(step, bool):
            steps.append(Decimal(repr(step)))
        if "$ref" in one or any(keyword in one for keyword in OF_ONE_VALUE):
            meeting.append(one)
    _check_multiples(steps)
    _check_meeting(meeting, named_in(schema))


def _check_texts(schema: Mapping[str, Any]) -> None:
    values = schema.get("enum")
    for text in (schema.get("const"), *(values if isinstance(values, list) else ())):
        if isinstance(text, str) and len(text) > MOST_TEXT:
            raise ValueError(
                f"the schema has a text of {len(text)} characters; {MOST_TEXT} are the most"
            )


def check_embedded(lark: str) -> None:
    """The same for every schema in a grammar in Lark."""
    for place in EMBEDDED.finditer(lark):
        try:
            schema, _ = json.JSONDecoder().raw_decode(lark, place.end())
        except (ValueError, RecursionError):
            continue  # in a text or a comment; else the library says what is wrong
        check_cost(schema)


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside one, each with its place."""
    for keyword in OF_SCHEMAS:
        value = schema.get(keyword)
        if isinstance(value, dict):
            yield from ((f"{keyword}.{name}", part) for name, part in value.items())
    for keyword in (*SEVERAL, "items"):
        value = schema.get(keyword)
        if isinstance(value, list):
            yield from ((f"{keyword}[{i}]", part) for i, part in enumerate(value))
    for keyword in ("items", "additionalProperties", "additionalItems"):
        value = schema.get(keyword)
        if isinstance(value, dict):
            yield keyword, value


def _check_multiples(steps: Sequence[Decimal]) -> None:
    """Refuse a grammar of millions of remainders: one number may have to be a multiple of all steps."""
    least = total = 0
    for step in steps:
        digits = _digits(step)
        least = _digits(Decimal(math.lcm(least or 1, digits)))
        total += digits
        if least > MOST_MULTIPLE or total > MOST_MULTIPLES:
            raise ValueError(
                f"multipleOf: without zeros at the end, the least common multiple of all is {least} and their "
                f"sum {total}; at most {MOST_MULTIPLE} and {MOST_MULTIPLES} are taken"
            )


def _digits(number: Decimal) -> int:
    """Of a number, without zeros at its beginning and end."""
    return int("".join(map(str, number.normalize().as_tuple().digits)))


def _check_meeting(schemas: Sequence[dict[str, Any]], named: Mapping[str, Any]) -> None:
    """Refuse a text that has to match many expressions at once."""
    steps = 0
    for schema in schemas:
        seen = together(schema, named)
        steps += len(seen)
        if steps > MOST_STEPS:
            raise ValueError("the schema's allOf, anyOf, oneOf and $ref lead to too many schemas")
        count = sum(k in one for one in seen for k in EXPRESSIONS)
        if count > MOST_MEETING:
            raise ValueError(
                f"allOf, anyOf, oneOf and $ref bring {count} of pattern and format together; at most "
                f"{MOST_MEETING} are taken"
            )


def together(schema: object, named: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of one value: this one, and those that allOf, anyOf, oneOf and $ref bring."""
    seen: dict[int, dict[str, Any]] = {}
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, dict) and id(one) not in seen:
            seen[id(one)] = one
            todo += [target(one.get("$ref"), named), *reversed(beside(one, *OF_ONE_VALUE))]
    return [*seen.values()]


def beside(schema: Mapping[str, Any], *keywords: str) -> list[Any]:
    """The schemas of the same value in some of its keywords."""
    return [part for k in keywords if isinstance(schema.get(k), list) for part in schema[k]]


def _every(schema: object) -> Iterator[dict[str, Any]]:
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo += [part for _, part in parts(one)]


def named_in(schema: object) -> dict[str, Any]:
    """The schemas inside one that references call by names."""
    named: dict[str, Any] = {"#": schema}
    for one in _every(schema):
        names = (f"#{one.get('$anchor')}", one.get("$id"), one.get("id"))
        named.update((name, one) for name in names if isinstance(name, str))
    return named


def target(reference: object, named: Mapping[str, Any]) -> object:
    """The schema that a reference inside the schema names; None: there is none."""
    if not isinstance(reference, str):
        return None
    if reference in named:
        return named[reference]
    place: Any = named["#"]
    for name in reference.removeprefix("#/").split("/"):
        name = unquote(name).replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name[:6]) < len(place):
            place = place[int(name[:6])]
        elif isinstance(place, dict):
            place = place.get(name)
        else:
            return None
    return place


def library() -> Any:
    """llguidance, which makes grammars of schemas."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise ValueError(
            "grammars need the package llguidance: pip install 'fastslow[grammar]'"
        ) from None
