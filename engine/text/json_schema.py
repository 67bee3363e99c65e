"""JSON schemas before they become grammars: every keyword is known, and nothing is absurdly large."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from fastslow.engine.checked import nearest, shown
from fastslow.engine.text.schema_cost import check_cost, parts

DEEPEST = 64  # schemas inside each other
MOST_KEYWORDS = 10_000
MOST_PROPERTIES = 2000  # of one object: a grammar of more takes seconds, and rows that are too long

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
        if isinstance(one.get("items"), list) and "prefixItems" in one:
            raise ValueError(f"{where or 'the schema'} has items as a list, and prefixItems")
        todo += [(f"{where}.{name}".lstrip("."), part, depth + 1) for name, part in parts(one)]
    check_cost(schema)


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
