"""JSON schemas before they become grammars: every keyword is known, and nothing is absurdly large."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeGuard

from fastslow.engine.checked import nearest, shown

DEEPEST = 64  # schemas inside each other
MOST_KEYWORDS = 10_000
MOST_PROPERTIES = 2000  # of one object: a grammar of more takes seconds, and rows that are too long
MOST_MULTIPLE = 100_000  # a grammar looks at every remainder, which takes a second
MOST_MULTIPLES = 2 * MOST_MULTIPLE  # of all of them together

OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # name -> schema
SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
HELD = [
    "type",
    "enum",
    "const",
    "$ref",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "allOf",
    "anyOf",
    "oneOf",
]
"""Keywords that the grammar holds an answer to."""
NOTES = [
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentEncoding",
    "contentMediaType",
    "discriminator",
]
"""Keywords that say nothing about what is valid."""
KNOWN = frozenset((*HELD, *NOTES))


def check_schema(text: str) -> None:
    """Refuse a schema with a keyword that the grammar would not hold to.

    Raises:
        ValueError: no JSON, no schema, an unknown keyword, or too large.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the schema is no JSON: {shown(str(error))}") from None
    todo, count = [("", schema, 1)], 0
    multiples: list[Decimal] = []
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
                place = f"{where}.{keyword}".lstrip(".")
                raise ValueError(f"schema keyword {shown(place)} is not supported{_hint(keyword)}")
        _check_properties(where or "the schema", one)
        _check_range(where or "the schema", one)
        if _number(step := one.get("multipleOf")) and step > 0:
            multiples.append(Decimal(repr(step)))
        if isinstance(one.get("items"), list) and "prefixItems" in one:
            raise ValueError(f"{where or 'the schema'} has items as a list, and prefixItems")
        todo += [(f"{where}.{name}".lstrip("."), part, depth + 1) for name, part in _parts(one)]
    _check_multiples(multiples)


def _check_multiples(steps: Sequence[Decimal]) -> None:
    """Refuse what would make a grammar of millions of remainders. Any of them may hold of one number, which is
    then a multiple of them all."""
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


def _check_properties(where: str, schema: Mapping[str, Any]) -> None:
    for keyword in ("properties", "patternProperties", "required"):
        names = schema.get(keyword)
        if isinstance(names, dict | list) and len(names) > MOST_PROPERTIES:
            said = f"{where} has {len(names)} {keyword}; at most {MOST_PROPERTIES} are taken"
            raise ValueError(said)


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


def _hint(keyword: str) -> str:
    close = nearest(keyword, KNOWN)
    return close if "did you mean" in close else ""


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside one."""
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
