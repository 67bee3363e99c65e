"""Objects of a JSON schema that do not say `additionalProperties` are closed, as most servers have it: under an open
one a model may invent fields until its tokens are used up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastslow.engine.sampling.grammars.json_schema import (
    OF_ONE_VALUE,
    beside,
    named_in,
    parts,
    target,
    together,
)

OPEN = "x-additional-properties"  # true at the top of a schema: objects are open, as the standard has it
# what may bring further names; a tool may have these, though no grammar holds to them
OTHERS = (
    *("then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
    "unevaluatedProperties",
)
MOST_ADDED = 200_000  # names, and characters of schemas that are copied

Names = dict[str | None, None]
"""Of properties, in their order; None among them: the value may have others, too."""


def closed(schema: Any) -> Any:
    """The schema with its objects closed. Where several schemas describe one object (allOf, anyOf, oneOf, $ref beside
    properties), it has the names of all. ValueError: that makes it too large."""
    if not isinstance(schema, dict) or schema.get(OPEN) is True:
        return schema
    return _Closing(schema).root


class _Closing:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._named = named_in(schema)  # as they were
        self._copies: dict[int, str] = {}  # references, by what they copy
        self._added = 0
        self.root: dict[str, Any] = json.loads(json.dumps(schema))
        self._todo: list[tuple[Any, Names | None]] = [(self.root, {})]
        while self._todo:
            one, others = self._todo.pop()
            if isinstance(one, dict):
                self._close(one, others)

    def _close(self, one: dict[str, Any], others: Names | None) -> None:
        """others: names that other schemas of the same object bring; None: one of those closes it."""
        inner = {key: value for key, value in one.items() if key not in OF_ONE_VALUE}
        self._todo += [(part, {}) for _, part in parts(inner)]
        own, all_of = _own(one), beside(one, "allOf")
        with_it = *all_of, target(one.get("$ref"), self._named)
        rest = [own, *map(self._names, with_it)]
        either = {keyword: self._names(*beside(one, keyword)) for keyword in ("anyOf", "oneOf")}
        sides = [*([part] for part in with_it), *(beside(one, keyword) for keyword in either)]
        brought = sum(any(map(_lists, self._together(*side))) for side in sides)
        alone = others == {} and brought + _lists(one) < 2
        if not alone and "$ref" in one:
            one["$ref"] = self._copy(one["$ref"])
        self._todo += [(part, {} if alone else None) for part in all_of]
        for keyword, other in zip(either, reversed(either.values())):
            held = None if others is None else _joined(others, *rest, other)
            self._todo += [(part, {} if alone else held) for part in beside(one, keyword)]
        lists = "properties" in one or "patternProperties" in one
        if others is not None and (lists or not alone and brought):
            if not _says(one, *OTHERS):
                own.pop(None, None)  # what it says itself holds beside its own names
            self._end(one, _joined(*rest, others, *either.values()))

    def _end(self, one: dict[str, Any], names: Names) -> None:
        """Close one object, unless it says what else it may have, or that would leave none."""
        known = one.get("properties", {})
        if None in names or "additionalProperties" in one or not isinstance(known, dict):
            return
        more = {name: True for name in names if name not in known}
        least = one.get("minProperties", 0)
        if "patternProperties" in one and more or not isinstance(least, int) or least > len(names):
            return
        self._add(len(more))
        one |= {"properties": {**known, **more}, "additionalProperties": False}

    def _copy(self, reference: Any) -> Any:
        """A reference to the same schema, which another one closes."""
        found = target(reference, self._named)
        if not isinstance(found, dict):
            return reference
        if id(found) not in self._copies:
            text, name = json.dumps(found), f"open-{len(self._copies)}"
            self._add(len(text))
            copy = {k: v for k, v in json.loads(text).items() if k not in ("$id", "id", "$anchor")}
            self.root.setdefault("$defs", {})[name] = copy
            self._copies[id(found)] = f"#/$defs/{name}"
            self._todo.append((copy, None))
        return self._copies[id(found)]

    def _names(self, *schemas: Any) -> Names:
        return _joined(*map(_own, self._together(*schemas)))

    def _together(self, *schemas: Any) -> list[dict[str, Any]]:
        return [one for schema in schemas for one in together(schema, self._named)]

    def _add(self, count: int) -> None:
        self._added += count
        if self._added > MOST_ADDED:
            raise ValueError("its objects are put together of too many schemas")


def _own(schema: Mapping[str, Any]) -> Names:
    """Return the property names that a schema itself lists; None among them where it allows others."""
    lists = [schema.get(keyword) for keyword in ("properties", "required", "const")]
    lists += beside(schema, "enum")
    names = [name for one in lists if isinstance(one, dict | list) for name in one]
    others = "patternProperties" in schema or _says(schema, "additionalProperties", *OTHERS)
    return _joined({None: None} if others else {}, {n: None for n in names if isinstance(n, str)})


def _lists(schema: Mapping[str, Any]) -> bool:
    """Tell whether a schema itself lists property names, an empty list included."""
    return "properties" in schema or bool(_own(schema))


def _says(schema: Mapping[str, Any], *keywords: str) -> bool:
    return any(schema.get(keyword, False) is not False for keyword in keywords)


def _joined(*each: Names) -> Names:
    return {name: None for names in each for name in names}
