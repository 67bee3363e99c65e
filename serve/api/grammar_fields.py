"""Fields that hold an answer to a grammar, in vLLM's older and newer form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from fastslow.engine.params import nearest, shown

GUIDED = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "gbnf",
}
STRUCTURED = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "gbnf",
    "json_object": "json_object",
}
ANY_OBJECT: dict[str, Any] = {"json_object": True}


class GrammarFields(BaseModel):
    """What an answer must match; at most one of them."""

    guided_json: str | dict[str, Any] | None = Field(default=None, description="a JSON schema")
    guided_regex: str | None = Field(default=None, description="a regular expression")
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1, max_length=1000, description="one of these texts"
    )
    guided_grammar: str | None = Field(
        default=None, description="a grammar, in Lark's or GBNF's form"
    )
    structured_outputs: dict[str, Any] | None = Field(
        default=None, description="one of json, regex, choice, grammar, and json_object: true"
    )

    def grammar(self, most: int) -> dict[str, Any] | None:
        """The grammar that is asked for, as `SamplingParams.grammar` takes it: one entry, of json_schema,
        json_object, regex, choice or gbnf (which reads Lark, too).

        Raises:
            ValueError: several are given, or one has more than `most` bytes.
        """
        found = dict(self.grammars())
        if len(found) > 1:
            names = " and ".join(found)
            raise ValueError(f"{names} are both given, and an answer has one grammar")
        for name, grammar in found.items():
            size = len(json.dumps(grammar, ensure_ascii=False).encode())
            if size > most:
                raise ValueError(f"{name} has {size} bytes; at most {most} are taken")
            return grammar
        return None

    def grammars(self) -> list[tuple[str, dict[str, Any]]]:
        """The grammars that are given, by the fields that give them. Protocols add their own to these.

        Raises:
            ValueError: a field of `structured_outputs` is unknown.
        """
        given = ((name, kind, getattr(self, name)) for name, kind in GUIDED.items())
        found = [
            (name, _one(name, kind, value)) for name, kind, value in given if value is not None
        ]
        for name, value in (self.structured_outputs or {}).items():
            where = f"structured_outputs.{name[:60]}"
            if name not in STRUCTURED:
                raise ValueError(f"{where} is unknown{nearest(name, STRUCTURED)}")
            if value is not None and value is not False:
                found.append((where, _one(where, STRUCTURED[name], value)))
        return found


def format_grammar(
    field: str, kind: str, schema: dict[str, Any] | None, place: str = "schema"
) -> list[tuple[str, dict[str, Any]]]:
    """The grammar of a `field` that holds the form of an answer, such as a response_format; none for "text".

    Args:
        kind: text, json_object or json_schema.
        schema: of the last kind.
        place: of the schema in the field.

    Raises:
        ValueError: there is no schema.
    """
    if kind == "text":
        return []
    if kind == "json_object":
        return [(field, dict(ANY_OBJECT))]
    if schema is None:
        raise ValueError(f"field '{field}.{place}' is missing")
    return [(field, {"json_schema": schema})]


def _one(field: str, kind: str, value: Any) -> dict[str, Any]:
    """A grammar as the engine takes it."""
    if kind == "json_object":
        if value is not True:
            raise ValueError(f"{field}={shown(value)} must be true or false")
        return dict(ANY_OBJECT)
    if kind == "json_schema":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"{field}={shown(value)} is no JSON") from None
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={shown(value)} must be a JSON schema, an object")
    elif kind == "choice":
        if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            raise ValueError(f"{field}={shown(value)} must be a list of texts")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"{field}={shown(value)} must be a text, not empty")
    return {kind: value}
