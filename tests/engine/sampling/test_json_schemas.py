"""Schemas of many kinds: each compiles, and what may be said under it is valid."""

import json
from typing import Any

import pytest
from grammar_tools import GrammarKit, holds, schemas, walked

from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.grammars.closed_objects import closed
from fastslow.engine.sampling.grammars.llguidance_grammar import MOST_KEPT
from fastslow.engine.text.vocabulary import Tokenizer


@pytest.fixture(scope="module")
def kit(bpe: Tokenizer) -> GrammarKit:
    return GrammarKit(bpe, 320)


@pytest.mark.parametrize("number", range(100))
def test_what_a_schema_allows_is_valid(kit: GrammarKit, number: int) -> None:
    kind, schema = schemas()[number]
    texts = [walked(kit.matcher(json_schema=schema), kit.tokenizer, seed) for seed in range(6)]
    whole = [text for text in texts if text is not None]
    assert whole, f"no text of {kind} came to its end"
    for text in whole:
        assert holds(GrammarSpec(json_schema=schema), text), text


I: dict[str, Any] = {"type": "integer"}
X, Y = ({"type": "object", "properties": {"k": {"const": n}, n: I}, "required": ["k", n]} for n in "xy")
DEFS: dict[str, Any] = {"$defs": {"a": {"type": "object", "properties": {"a": I}, "required": ["a"]}}}
A: dict[str, Any] = {"$ref": "#/$defs/a"}
B: dict[str, Any] = {"properties": {"b": A}, "required": ["b"]}
CLOSED: list[tuple[dict[str, Any], str, str]] = [  # schema, what fits, what a closed object does not have
    (DEFS | A, '{"a": 1}', '{"a": 1, "b"'),
    ({"type": "array", "items": {"properties": {}, "type": "object"}}, "[{}, {}]", '[{"a"'),
    (DEFS | {"allOf": [A], "title": "one"}, '{"a": 1}', '{"a": 1, "b"'),
    (DEFS | {"allOf": [A, B]}, '{"a": 1, "b": {"a": 2}}', '{"a": 1, "b": {"a": 2}, "c"'),
    (DEFS | {"allOf": [A, B]}, '{"a": 1, "b": {"a": 2}}', '{"a": 1, "b": {"a": 2, "c"'),
    (DEFS | A | B, '{"a": 1, "b": {"a": 2}}', '{"a": 1, "b": {"a": 2}, "c"'),
    (DEFS | {"anyOf": [A, {"type": "null"}]}, '{"a": 1}', '{"a": 1, "b"'),
    (DEFS | {"anyOf": [A, {"required": ["c"]}], **B}, '{"a": 1, "b": {"a": 2}}', '{"a": 1, "b": {"a": 2}, "c"'),
    ({"type": "object", "properties": {"k": {"type": "string"}}, "oneOf": [X, Y], "required": ["k"]},
        '{"k": "y", "y": 1}', '{"k": "y", "x"'),
    ({"properties": {"a": I}, "required": ["a", "b"]}, '{"a": 1, "b": {"c": []}}', '{"a": 1, "b": 2, "c"'),
    ({"patternProperties": {"^x": I}}, '{"x1": 1}', '{"y1"'),
    (DEFS | {"allOf": [{"properties": {}}], **A}, '{"a": 1}', '{"a": 1, "b"'),
    (DEFS | {"allOf": [{"properties": {}}, A]}, '{"a": 1}', '{"a": 1, "b"'),
    (DEFS | {"properties": {}, **A}, '{"a": 1}', '{"a": 1, "b"'),
]  # fmt: skip
OPEN: list[tuple[dict[str, Any], str]] = [
    ({"type": "object"}, '{"a": 1}'),
    ({"properties": {"a": I}, "additionalProperties": True}, '{"a": 1, "b": 2}'),
    ({"properties": {"a": I}, "x-additional-properties": True}, '{"a": 1, "b": 2}'),
    ({"allOf": [{"properties": {"a": I}}, {"additionalProperties": I}]}, '{"a": 1, "b": 2}'),
    ({"type": "object", "properties": {}, "minProperties": 1}, '{"a": 1}'),
    ({"properties": {"a": I}, "enum": [{"a": 1, "b": 2}]}, '{"a": 1, "b": 2}'),
    ({"properties": {"a": I}, "allOf": [{"const": {"a": 1, "b": 2}}]}, '{"a": 1, "b": 2}'),
]


def fits(kit: GrammarKit, schema: dict[str, Any], text: str) -> bool:
    return all(map(kit.matcher(json_schema=schema).accept, kit.tokenizer.encode(text, add_special=False)))


@pytest.mark.parametrize(("schema", "text", "more"), CLOSED)
def test_objects_have_the_fields_that_are_named(kit: GrammarKit, schema: dict[str, Any], text: str, more: str) -> None:
    """Else a model may invent fields until its tokens are used up. The switch opens them."""
    assert fits(kit, schema, text) and not fits(kit, schema, more)
    if "oneOf" not in schema:  # which needs them closed: its parts must exclude each other
        opened = {**schema, "x-additional-properties": True}
        assert fits(kit, opened, text) and fits(kit, opened, more)


@pytest.mark.parametrize(("schema", "text"), OPEN)
def test_objects_that_say_so_are_open(kit: GrammarKit, schema: dict[str, Any], text: str) -> None:
    assert fits(kit, schema, text)


WHERE = {"if": {"required": ["a"]}, "then": {"properties": {"b": I}, "required": ["b"]}}


@pytest.mark.parametrize("more", [WHERE, {"allOf": [WHERE]}, {"dependentRequired": {"a": ["b"]}}], ids=str)
def test_what_may_bring_other_names_stays_open(more: dict[str, Any]) -> None:
    """As a tool's parameters, of which these keywords are left out."""
    schema = {"properties": {"a": I}, **more}
    assert closed(schema) == schema and closed({"items": schema}) == {"items": schema}


def test_closing_is_bounded(kit: GrammarKit) -> None:
    each = [{"properties": {"a": I}} for _ in range(1500)]
    names = {f"n{i}": I for i in range(1900)}
    with pytest.raises(ValueError, match="its objects are put together of too many schemas"):
        kit.matcher(json_schema={"properties": names, "anyOf": each})


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"type": "object", "minimun": 1}, "'minimun' is not supported; did you mean 'minimum'"),
    ({"properties": {"a": {"nullable": True}}}, "'properties.a.nullable' is not supported"),
    ({"anyOf": [{}, {"not": {}}]}, r"'anyOf\[1\].not' is not supported"),
    ({"uniqueItems": True}, "'uniqueItems' is not supported"),
    ({"x-guidance": {"lenient": True}}, "'x-guidance' is not supported"),
    ({"if": {}, "then": {}}, "'if' is not supported"),
    ({"$defs": {"a": {"frob": 1}}}, r"'\$defs.a.frob' is not supported"),
    ({"type": "strin"}, "Invalid type"),
    ({"type": "string", "format": "frob"}, "Unknown format: frob"),
    ({"type": "string", "pattern": "(a"}, "unclosed group"),
    ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ({"$ref": "#/$defs/none"}, "does not exist"),
    ({"$ref": "https://example.org/schema"}, "does not fetch resources"),
    ({"$ref": "#"}, "cannot be used"),
    ({"type": "integer", "minimum": 3, "maximum": 1}, "greater than maximum"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, "excludes its whole end"),
    ({"minimum": -1.5, "exclusiveMaximum": -1}, "excludes its whole end"),
    ({"properties": {"a": 5}}, "'?properties.a'? is 5, and no JSON schema"),
]


def deep(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


HUGE_SCHEMAS: dict[str, Any] = {
    "deep": deep(70), "very deep": deep(20_000), "no JSON": "{", "a list": "[]",
    "a long period": {"type": "integer", "multipleOf": 100_003},
    "periods that meet": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    "long periods": {"prefixItems": [{"multipleOf": 99_991, "minimum": i} for i in range(3)]},
    "expressions that meet": {"allOf": [{"type": "string", "pattern": f"a{i}.*"} for i in range(40)]},
    "expressions that meet by reference": {
        "$defs": {f"a/{i}": {"pattern": f"a{i}.*", "$anchor": f"n{i}"} for i in range(40)},
        "properties": {
            "x": {"allOf": [{"$ref": f"#/$defs/a~1{i}"} for i in range(20)]},
            "y": {"allOf": [{"$ref": f"#n{i}"} for i in range(20, 40)]},
        },
    },
    "many keywords": json.dumps({f"x-{i}": 1 for i in range(10_001)}),
}  # fmt: skip
LONG_PERIOD = '%json {"type": "integer", "multipleOf": 999983}'
HUGE: dict[str, dict[str, Any]] = {
    **{name: {"json_schema": schema} for name, schema in HUGE_SCHEMAS.items()},
    "a long period in Lark": {"lark": f"start: {LONG_PERIOD}"},
    "a long period as GBNF": {"gbnf": f"start: j\nj: {LONG_PERIOD}"}, "open group": {"regex": "(a"},
    "lark": {"lark": "nope"}, "no start": {"lark": 'a: "b"'}, "gbnf": {"gbnf": "root ::= missing"},
    "deep brackets": {"gbnf": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "unknown mark": {"lark": "start: <|nothing|>"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [*(({"json_schema": schema}, said) for schema, said in UNKNOWN), *((fields, "") for fields in HUGE.values())],
    ids=[*(said for _, said in UNKNOWN), *HUGE],
)
def test_what_cannot_be_held_is_refused_in_one_sentence(kit: GrammarKit, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        kit.matcher(**fields)
    assert str(error.value).startswith(f"grammar.{next(iter(fields))} cannot be used: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("step", [0.01, 0.125, 123.45, 5, 86_400, 1_000_000])
def test_usual_multiples_are_taken(kit: GrammarKit, step: float) -> None:
    schema = {"type": "array", "items": {"type": "number", "multipleOf": step, "minimum": 0}}
    assert all(map(kit.matcher(json_schema=schema).accept, kit.tokenizer.encode("[0", add_special=False)))


def test_expressions_apart_may_be_many(kit: GrammarKit) -> None:
    texts = {f"p{i}": {"allOf": [{"$ref": "#/$defs/t"}], "pattern": f"a{i}"} for i in range(40)}
    schema = {"type": "object", "properties": texts, "$defs": {"t": {"type": "string"}}}
    assert kit.matcher(json_schema=schema).mask().any()


def test_compiled_grammars_are_kept_and_their_number_is_bounded(kit: GrammarKit) -> None:
    for number in range(MOST_KEPT + 5):
        kit.matcher(regex=f"a{{{number + 1}}}")
    assert len(kit.compiler._made) == MOST_KEPT
    one = kit.compiler._made[GrammarSpec(regex="a{60}")]
    kit.matcher(regex="a{60}").accept(kit.tokenizer.encode("a")[0])
    assert kit.compiler._made[GrammarSpec(regex="a{60}")] is one
    assert not kit.matcher(regex="a{60}").ended(), "a matcher is a copy"
