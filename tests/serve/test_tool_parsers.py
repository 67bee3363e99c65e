"""Calls in the text of answers: the same however it is cut, nothing lost, nothing read many times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_calls import Parsed, parse

from fastslow.engine.text.tool_formats import BY_NAME
from fastslow.serve.tool_calls.events import CallBegun, CallMore
from fastslow.serve.tool_calls.parsers import parser_of

SCHEMA = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
FUNCTIONS: dict[str, Any] = {"f": SCHEMA, "get_it-2": SCHEMA}
MARK = "<|start|>assistant<|channel|>commentary to=functions."

Found = tuple[str, list[tuple[str, str]], bool]


def found(parsed: Parsed) -> Found:
    return parsed.content, [(call.name, call.arguments) for call in parsed.calls], parsed.complete


def read(name: str, pieces: Sequence[str]) -> Found:
    parser = parser_of(BY_NAME[name], FUNCTIONS)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish()
    assert parser.finish() == []
    return found(Parsed.of(events, parser.complete))


F5 = '{"name": "f", "arguments": {"b": 5}}'
G = '{"name": "get_it-2", "arguments": {"a": "é\\n\\"</tool_call>"}}'
GA = '{"a": "é\\n\\"</tool_call>"}'
B5 = '{"b": 5}'
XML = '<function=f>\n<parameter=a>\n1\n2 "x"\n</parameter>\n<parameter=b>\n5\n</parameter>\n</function>\n</tool_call>'
CASES: list[tuple[str, str, Found]] = [
    ("hermes", "", ("", [], True)),
    ("hermes", " \nhello \n", (" \nhello \n", [], True)),
    ("hermes", f"<tool_call>\n{F5}\n</tool_call>", ("", [("f", B5)], True)),
    ("hermes", f"<tool_call>{F5}</tool_call>\n", ("", [("f", B5)], True)),
    ("hermes", f"A.\n<tool_call>\n{F5}\n</tool_call>", ("A.", [("f", B5)], True)),
    (
        "hermes",
        f"A\n<tool_call>\n{F5}\n</tool_call>\n<tool_call>\n{G}\n</tool_call> B",
        ("A\n\n B", [("f", B5), ("get_it-2", GA)], True),
    ),
    ("hermes", f"<tool_call>[{F5}, {G}]</tool_call>", ("", [("f", B5), ("get_it-2", GA)], True)),
    ("hermes", "<tool_call>{bad}</tool_call> x", ("<tool_call>{bad}</tool_call> x", [], True)),
    ("hermes", "<tool_call></tool_call>", ("<tool_call></tool_call>", [], True)),
    ("hermes", f"<tool_call>oh <tool_call>{F5}</tool_call>", ("<tool_call>oh", [("f", B5)], True)),
    ("hermes", F5, (F5, [], True)),
    (
        "hermes",
        '<tool_call>{"name": "g", "arguments": {}}',
        ('<tool_call>{"name": "g", "arguments": {}}', [], True),
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1]}',
        ('<tool_call>{"name": "f", "arguments": [1]}', [], True),
    ),
    ("hermes", '<tool_call>{"name": "f", "argu', ('<tool_call>{"name": "f", "argu', [], True)),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"b": 5', ("", [("f", '{"b": 5')], False)),
    ("hermes", f"<tool_call>{F5}\n</tool_", ("", [("f", B5)], True)),
    ("hermes", f"<tool_call>{F5}", ("", [("f", B5)], True)),
    ("hermes", f"<tool_call>{F5} more", (" more", [("f", B5)], True)),
    ("hermes", f"<tool_call>{F5[:-1]}</tool_call>", ("", [("f", B5)], True)),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {bad}}</tool_call>x',
        ("x", [("f", "{bad}}")], True),
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"b": [}</tool_call>',
        ("", [("f", '{"b": [}')], True),
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")], True)),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": null}</tool_call>',
        ("", [("f", "{}")], True),
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"b\\": 5}"}</tool_call>',
        ("", [("f", B5)], True),
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"b": 5}, "name": "f", "id": 7,}</tool_call>',
        ("", [("f", B5)], True),
    ),
    (
        "hermes",
        '<tool_call>{"na\\u006de": "\\u0066", "parameters": {"b": 5}}</tool_call>',
        ("", [("f", B5)], True),
    ),
    ("generic", f"<tool_call>\n{F5}\n</tool_call>", ("", [("f", B5)], True)),
    ("pangu", f"A[unused11][{F5}][unused12]", ("A", [("f", B5)], True)),
    ("pangu", f"[unused11][{F5}, {G}][unused12]B", ("B", [("f", B5), ("get_it-2", GA)], True)),
    ("pangu", f"[unused11]{F5}[unused12]", ("", [("f", B5)], True)),
    ("pangu", f"[unused11][{F5}]", ("", [("f", B5)], True)),
    ("pangu", "[unused11][][unused12]", ("[unused11][][unused12]", [], True)),
    ("llama3", F5.replace("arguments", "parameters"), ("", [("f", B5)], True)),
    ("llama3", f"\n{F5}; {G}", ("", [("f", B5), ("get_it-2", GA)], True)),
    ("llama3", f"<|python_tag|>{F5}", ("", [("f", B5)], True)),
    ("llama3", "<|python_tag|>print(1)", ("<|python_tag|>print(1)", [], True)),
    ("llama3", '{"answer": {"name": "f"}}', ('{"answer": {"name": "f"}}', [], True)),
    ("llama3", '{"name": "Zoe", "age": 5}', ('{"name": "Zoe", "age": 5}', [], True)),
    ("llama3", f"So: {F5}", (f"So: {F5}", [], True)),
    ("llama3", f"[{F5}]", ("", [("f", B5)], True)),
    ("mistral", f"[TOOL_CALLS] [{F5}, {G}]", ("", [("f", B5), ("get_it-2", GA)], True)),
    ("harmony", f"{MARK}f <|constrain|>json<|message|>{B5}<|call|>", ("", [("f", B5)], True)),
    ("harmony", f"{MARK}f json<|message|>{B5}", ("", [("f", B5)], True)),
    ("harmony", f'{MARK}f json<|message|>{{"b', ("", [("f", '{"b')], False)),
    ("harmony", f"{MARK}f<|message|><|call|>", ("", [("f", "{}")], True)),
    (
        "harmony",
        f"{MARK}f<|message|>{B5}<|call|>{MARK}get_it-2<|message|>{GA}<|end|>so",
        ("so", [("f", B5), ("get_it-2", GA)], True),
    ),
    ("harmony", f"{MARK}g<|message|>{B5}<|call|>", (f"{MARK}g<|message|>{B5}<|call|>", [], True)),
    ("harmony", f"{MARK}f json", (f"{MARK}f json", [], True)),
    (
        "qwen3-coder",
        f"A\n<tool_call>\n{XML}",
        ("A", [("f", '{"a": "1\\n2 \\"x\\"", "b": 5}')], True),
    ),
    (
        "qwen3-coder",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>B",
        ("B", [("f", "{}")], True),
    ),
    (
        "qwen3-coder",
        "<tool_call><function=g></function></tool_call>",
        ("<tool_call><function=g></function></tool_call>", [], True),
    ),
    ("qwen3-coder", f"<tool_call>{F5}</tool_call>", (f"<tool_call>{F5}</tool_call>", [], True)),
    ("qwen3-coder", "<tool_call><function=f><parameter=a>x", ("", [("f", '{"a": "x')], False)),
    (
        "qwen3-coder",
        "<tool_call><function=f><parameter=b>True</parameter>?",
        ("?", [("f", '{"b": true}')], True),
    ),
    (
        "qwen3-coder",
        "<tool_call><function=f><parameter=c>x y</parameter></function>",
        ("", [("f", '{"c": "x y"}')], True),
    ),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_parse(name: str, text: str, expected: Found) -> None:
    assert found(parse(text, BY_NAME[name], FUNCTIONS)) == expected
    assert read(name, list(text)) == expected


PARTS = {
    "hermes": [
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": ',
        '{"b": 5}',
        "}",
        F5,
        G,
        '"',
        "\n",
    ],
    "pangu": ["[unused11]", "[unused12]", "[", F5, ", ", G, "]", "}", '{"name": "f", ', "\n"],
    "llama3": ["<|python_tag|>", F5, "; ", G, "[", "]", '{"name": ', "\n", '"f"'],
    "harmony": [
        MARK,
        "f",
        " json",
        "<|message|>",
        B5,
        "<|call|>",
        "<|end|>",
        "<|start|>",
        "\n",
        "<|",
    ],
    "qwen3-coder": [
        *(
            "<tool_call>",
            "<function=f>",
            "<parameter=a>",
            "<parameter=b>",
            "\n",
            "5",
            "</parameter>",
            "x",
        ),
        *("</function>", "</tool_call>", "<", XML),
    ],
}


@given(data=st.data(), name=st.sampled_from(list(PARTS)))
def test_cuts_make_no_difference(data: st.DataObject, name: str) -> None:
    parts = st.lists(st.sampled_from([*PARTS[name], " ", "wörd"]), max_size=10)
    text = "".join(data.draw(parts))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    ends = [0, *sorted(cuts), len(text)]
    whole = found(parse(text, BY_NAME[name], FUNCTIONS))
    assert read(name, [text[a:b] for a, b in pairwise(ends)]) == whole
    assert read(name, list(text)) == whole
    assert "wörd" not in text or "wörd" in "".join(
        [whole[0], *(arguments for _, arguments in whole[1])]
    )


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=3)


@given(
    name=st.sampled_from(["hermes", "pangu", "llama3", "mistral"]),
    each=st.lists(objects, min_size=1, max_size=3),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
)
def test_whatever_arguments_are_written_is_read(
    name: str, each: list[dict[str, Any]], ascii: bool, indent: int | None
) -> None:
    form = BY_NAME[name]
    calls = [
        json.dumps({"name": "f", form.key: arguments}, ensure_ascii=ascii, indent=indent)
        for arguments in each
    ]
    if form.listed:
        text = f"{form.begin}[{', '.join(calls)}]{form.end}"
    elif form.bare:
        text = "; ".join(calls)
    else:
        text = "".join(f"{form.begin}\n{call}\n{form.end}\n" for call in calls)
    content, made, complete = read(name, list(text))
    assert (content, complete) == ("", True)
    assert [json.loads(arguments) for _, arguments in made] == each


def test_names_come_first_and_arguments_as_they_are_written() -> None:
    parser = parser_of(BY_NAME["hermes"], FUNCTIONS)
    assert parser.push('<tool_call>{"name": "f", "arguments": ') == []
    first = parser.push('{"b"')
    assert isinstance(first[0], CallBegun)
    assert first == [CallBegun(0, first[0].id, "f"), CallMore(0, '{"b"')]
    assert not parser.complete
    assert parser.push(": 5") == [CallMore(0, ": 5")]
    assert parser.push("}}") == [CallMore(0, "}")]
    assert parser.complete
    second = parser.push(f"</tool_call><tool_call>{G}")
    assert isinstance(second[0], CallBegun)
    assert second == [CallBegun(1, second[0].id, "get_it-2"), CallMore(1, GA)]
    assert parser.finish() == []


def test_ids_are_unique_and_fit_the_template() -> None:
    text = f"<tool_call>{F5}</tool_call>" * 50
    parsed = parse(text, BY_NAME["hermes"], FUNCTIONS)
    assert len({call.id for call in parsed.calls}) == 50
    assert all(call.id.startswith("call_") for call in parsed.calls)
    (call,) = parse(f"[TOOL_CALLS][{F5}]", BY_NAME["mistral"], FUNCTIONS).calls
    assert len(call.id) == 9 and call.id.isalnum()


LONG = "x<[ {\\n" * 1_000
LONGS = {
    "arguments": (
        "hermes",
        f'<tool_call>{{"name": "f", "arguments": {{"a": "{LONG}"}}}}</tool_call>',
    ),
    "brackets": ("hermes", '<tool_call>{"name": "f", "arguments": ' + '{"a": [1, 2]}, ' * 600),
    "late": ("hermes", f'<tool_call>{{"arguments": {{"a": "{LONG}"}}, "name": "f"}}'),
    "broken": ("hermes", f'<tool_call>{{"name": "f", "arguments": {{bad {LONG}</tool_call>'),
    "unfit": ("hermes", f'<tool_call>{{"x": "{LONG}'),
    "content": ("hermes", "a <tool_cal <" * 600),
    "many": ("pangu", f"[unused11][{F5}][unused12]" * 100),
    "bare": ("llama3", "; ".join([F5] * 150)),
    "channels": ("harmony", f"{MARK}f<|message|>{LONG}<|"),
    "header": ("harmony", f"{MARK}{LONG}"),
    "xml": ("qwen3-coder", f"<tool_call><function=f><parameter=a>{LONG}</parameter></function>"),
    "spaces": ("hermes", "a" + " \n" * 3_000),
}


@pytest.mark.parametrize("name", LONGS)
def test_no_character_is_looked_at_many_times(name: str) -> None:
    form, text = LONGS[name]
    for pieces in ([text], list(text)):
        parser = parser_of(BY_NAME[form], FUNCTIONS)
        for piece in pieces:
            parser.push(piece)
        parser.finish()
        assert parser.feed.scanned < 25 * len(text), len(pieces)
