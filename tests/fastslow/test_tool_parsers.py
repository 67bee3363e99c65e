"""Calls in the text of answers: the same however it is cut, nothing lost, nothing read many times."""

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslow.engine.text.tool_formats import BY_NAME
from fastslow.output import Piece
from fastslow.tool_calls.answer_parts import AnswerParts
from fastslow.tool_calls.parser import ToolParser

SCHEMA = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"enum": ["1"]}}}
FUNCTIONS: dict[str, Any] = {"f": SCHEMA, "get_it-2": SCHEMA}
MARK = "<|start|>assistant<|channel|>commentary to=functions."

Calls = list[tuple[str, str]]


def read(name: str, pieces: Sequence[str]) -> tuple[str, Calls]:
    """The content, and the calls with their arguments."""
    parser = ToolParser(BY_NAME[name], FUNCTIONS)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    assert parser.finish() == []
    content, calls = "", []
    for kind, text in events:
        match kind:
            case "text":
                content += text
            case "call":
                calls.append((text, ""))
            case "arguments":
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    return content, calls


F5 = '{"name": "f", "arguments": {"b": 5}}'
G = '{"name": "get_it-2", "arguments": {"a": "é\\n\\"</tool_call>"}}'
GA = '{"a": "é\\n\\"</tool_call>"}'
B5 = '{"b": 5}'
F, BOTH = [("f", B5)], [("f", B5), ("get_it-2", GA)]
XML = '<function=f>\n<parameter=a>\n1\n2 "x"\n</parameter>\n<parameter=b>\n5\n</parameter>\n</function>\n</tool_call>'
PAIRS = '<arg_key>a</arg_key>\n<arg_value>1\n2 "x"</arg_value>\n<arg_key>b</arg_key>\n<arg_value>5</arg_value>\n</tool_call>'
BRACES = '{a:<|"|>1\n2 "x"<|"|>,b:5}'
INVOKE = '<invoke name="f">\n<parameter name="b">5</parameter>\n</invoke>\n'
BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
PLAIN = {
    "hermes": [
        *("", " \nhello \n", F5, "<tool_call>{bad}</tool_call> x", "<tool_call></tool_call>"),
        *('<tool_call>{"name": "g", "arguments": {}}', '<tool_call>{"name": "f", "argu'),
    ],
    "pangu": ["[unused11][][unused12]"],
    "ministral": [f"[TOOL_CALLS]g[ARGS]{B5}", f"[TOOL_CALLS][{F5}]"],
    "llama3": [*("<|python_tag|>print(1)", '{"answer": {"name": "f"}}', '{"name": "Zoe", "age": 5}'), f"So: {F5}"],
    "harmony": [f"{MARK}g<|message|>{B5}<|call|>", f"{MARK}f json"],
    "qwen3-coder": [*("<tool_call><function=g></function></tool_call>", f"<tool_call>{F5}</tool_call>")],
    "glm": ["<tool_call>g\n<arg_key>a</arg_key>", "<tool_call>f", f"<tool_call>{F5}</tool_call>"],
    "minimax": [f"{BEGIN}<invoke name=f></invoke>{END}", "<tool_call>f\n</tool_call>"],
    "gemma4": ["<|tool_call>call:g{}<tool_call|>", f"<|tool_call>{F5}<tool_call|>", "<|tool_call>call:f"],
}
CASES: dict[str, list[tuple[str, str, Calls]]] = {
    "hermes": [
        (f"<tool_call>\n{F5}\n</tool_call>", "", F), (f"<tool_call>{F5}</tool_call>\n", "", F),
        (f"A.\n<tool_call>\n{F5}\n</tool_call>", "A.", F),
        (f"A\n<tool_call>\n{F5}\n</tool_call>\n<tool_call>\n{G}\n</tool_call> B", "A\n\n B", BOTH),
        (f"<tool_call>oh <tool_call>{F5}</tool_call>", "<tool_call>oh", F),
        ('<tool_call>{"name": "f", "arguments": {"b": 5', "", [("f", '{"b": 5')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\', "", [("f", '{"a": "\\')]),
        (f"<tool_call>{F5}\n</tool_", "", F), (f"<tool_call>{F5}", "", F), (f"<tool_call>{F5} more", "more", F),
        (f"<tool_call>{F5[:-1]}</tool_call>", "", F),
    ],
    "generic": [(f"<tool_call>\n{F5}\n</tool_call>", "", F)],
    "pangu": [
        (f"A[unused11][{F5}][unused12]", "A", F), (f"[unused11][{F5}, {G}][unused12]B", "B", BOTH),
        (f"[unused11][{F5}]", "", F),
    ],
    "openpangu": [
        (f"A<|tool_call_start|>\n[{F5}, {G}]\n<|tool_call_end|>", "A", BOTH), (f"<|tool_call_start|>[{F5}]", "", F),
    ],
    "llama3": [
        (F5.replace("arguments", "parameters"), "", F), (f"\n{F5}; {G}", "", BOTH), (f"<|python_tag|>{F5}", "", F),
    ],
    "ministral": [
        (f"A[TOOL_CALLS]f[ARGS]{B5}[TOOL_CALLS]get_it-2[CALL_ID]123456789[ARGS]{GA}", "A", BOTH),
        ('[TOOL_CALLS]f[ARGS]{"b', "", [("f", '{"b')]),
    ],
    "hunyuan": [(f"<tool_calls>[{F5}, {G}]</tool_calls>", "", BOTH), (f"<tool_calls>\n[\n{F5}\n]\n</tool_calls>B", "B", F)],
    "mistral": [(f"[TOOL_CALLS] [{F5}, {G}]", "", BOTH)], "granite": [(f"<|tool_call|>[{F5}, {G}]", "", BOTH)],
    "harmony": [
        (f"{MARK}f <|constrain|>json<|message|>{B5}<|call|>", "", F), (f"{MARK}f json<|message|>{B5}", "", F),
        (f'{MARK}f json<|message|>{{"b', "", [("f", '{"b')]),
        (f"{MARK}f<|message|>{B5}<|call|>{MARK}get_it-2<|message|>{GA}<|end|>so", "so", BOTH),
    ],
    "qwen3-coder": [
        (f"A\n<tool_call>\n{XML}", "A", [("f", '{"a": "1\\n2 \\"x\\"", "b": 5}')]),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>B", "B", [("f", "{}")]),
        ("<tool_call><function=f>\n<parameter=b>\n5\n", "", [("f", "{")]),
        ("<tool_call><function=f>\n<parameter=c>\n1\n</parameter>\n</function>", "", [("f", '{"c": "1"}')]),
    ],
    "glm": [
        (f"A\n<tool_call>f\n{PAIRS}", "A", [("f", '{"a": "1\\n2 \\"x\\"", "b": 5}')]),
        (f"<tool_call>f{PAIRS.replace(chr(10), '')}", "", [("f", '{"a": "12 \\"x\\"", "b": 5}')]),  # as 4.7 writes it
        ("<tool_call>f\n</tool_call>\n<tool_call>get_it-2</tool_call>B", "\nB", [("f", "{}"), ("get_it-2", "{}")]),
        ("<tool_call>f\n<arg_key>b</arg_key>\n<arg_value>5", "", [("f", "{")]),
    ],
    "minimax": [
        (f"A\n{BEGIN}\n{INVOKE}{END}", "A", F), (f"{BEGIN}{INVOKE}{INVOKE}{END}B", "B", F + F),
        (f"{BEGIN}\n{INVOKE}<invoke name='f'>", "<invoke name='f'>", F),
        (f'{BEGIN}\n<invoke name="f">\n</invoke>', "", [("f", "{}")]),
    ],
    "gemma4": [
        (f"A<|tool_call>call:f{BRACES}<tool_call|>B", "AB", [("f", '{"a": "1\\n2 \\"x\\"", "b": 5}')]),
        ("<|tool_call>call:f{b:5}<tool_call|><|tool_call>call:get_it-2{}<tool_call|>", "", [*F, ("get_it-2", "{}")]),
        ('<|tool_call>call:f{b:[true,{c:<|"|>{,<|"|>, d : -1.5e3}, x y]}', "",
         [("f", '{"b": [true, {"c": "{,", "d": -1.5e3}, "x y"]}')]),
        ("<|tool_call>call:f{b:NaN}", "", [("f", '{"b": "NaN"}')]),
        ('<|tool_call>call:f{a:<|"|>wi', "", [("f", '{"a": ')]), ("<|tool_call>call:f{b:5", "", [("f", '{"b": ')]),
    ],
}  # fmt: skip
ALL: list[tuple[str, str, str, Calls]] = []
ALL += [(name, text, text, []) for name, texts in PLAIN.items() for text in texts]
ALL += [(name, *case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "text", "content", "calls"), ALL)
def test_parse(name: str, text: str, content: str, calls: Calls) -> None:
    assert read(name, [text]) == read(name, list(text)) == (content, calls)


PARTS = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', B5, "}", F5, G, '"', "\n"],
    "pangu": ["[unused11]", "[unused12]", "[", F5, ", ", G, "]", "}", '{"name": "f", ', "\n"],
    "llama3": ["<|python_tag|>", F5, "; ", G, "[", "]", '{"name": ', "\n", '"f"'],
    "harmony": [*(MARK, "f", " json", "<|message|>", B5), *("<|call|>", "<|end|>", "<|start|>", "\n", "<|")],
    "qwen3-coder": [
        *("<tool_call>", "<function=f>\n", "<parameter=a>\n", "<parameter=b>\n", "5", "x"),
        *("\n</parameter>\n", "</function>\n", "</tool_call>", "<", "\n", XML),
    ],
    "glm": [*("<tool_call>", "f", "<arg_key>a</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>", "\n", PAIRS)],
    "gemma4": [*("<|tool_call>", "call:f", "{", "}", "a:", "b:5", ",", '<|"|>', "<tool_call|>", "\n", BRACES)],
    "ministral": ["[TOOL_CALLS]", "f", "[ARGS]", "[CALL_ID]", "1", B5, "{", '"', "}", "\n"],
    "minimax": [*(BEGIN, '<invoke name="f">', '<parameter name="a">', "x</parameter>", "</invoke>", END, "\n", INVOKE)],
}


@given(data=st.data(), name=st.sampled_from(list(PARTS)))
def test_cuts_make_no_difference(data: st.DataObject, name: str) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from([*PARTS[name], " ", "wörd"]), max_size=10)))
    ends = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8))), len(text)]
    whole = read(name, [text])
    assert read(name, [text[a:b] for a, b in pairwise(ends)]) == whole and read(name, list(text)) == whole


def objects_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text(max_size=4), values, max_size=3)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | objects_of(inner),
    max_leaves=8,
)


@given(
    name=st.sampled_from(["hermes", "pangu", "llama3", "mistral"]),
    each=st.lists(objects_of(values), min_size=1, max_size=3), ascii=st.booleans(), indent=st.sampled_from([None, 2]),
)  # fmt: skip
def test_whatever_arguments_are_written_is_read(
    name: str, each: list[dict[str, Any]], ascii: bool, indent: int | None
) -> None:
    form = BY_NAME[name]
    calls = [json.dumps({"name": "f", form.key: arguments}, ensure_ascii=ascii, indent=indent) for arguments in each]
    if form.listed:
        text = f"{form.begin}[{', '.join(calls)}]{form.end}"
    elif form.bare:
        text = "; ".join(calls)
    else:
        text = "".join(f"{form.begin}\n{call}\n{form.end}\n" for call in calls)
    content, made = read(name, list(text))
    assert content == "" and [json.loads(arguments) for _, arguments in made] == each


def test_names_come_first_and_arguments_as_they_are_written() -> None:
    parser = ToolParser(BY_NAME["hermes"], FUNCTIONS)
    for text, events in (
        ('<tool_call>{"name": "f", "arguments": ', []), ('{"b"', [("call", "f"), ("arguments", '{"b"')]),
        (": 5", [("arguments", ": 5")]), ("}}", [("arguments", "}")]),
        (f"</tool_call><tool_call>{G}", [("call", "get_it-2"), ("arguments", GA)]),
    ):  # fmt: skip
        assert parser.push(text) == events
    assert parser.finish() == []


@pytest.mark.parametrize(("name", "size"), [("hermes", 29), ("mistral", 9)])
def test_ids_are_unique_and_fit_the_template(name: str, size: int) -> None:
    form = BY_NAME[name]
    parts = AnswerParts(ToolParser(form, FUNCTIONS), True)
    parts.push(Piece(f"{form.begin}{F5}{form.end}" * 50))
    assert len(parts.calls) == len({call.id for call in parts.calls}) > (0 if form.listed else 49)
    assert all(len(call.id) == size and call.id.replace("_", "").isalnum() for call in parts.calls)


LONG = "x<[ {\\n" * 10_000
LONG_TEXT = f'"{LONG}"'
LONGS = {
    "arguments": ("hermes", f"<tool_call>{F5.replace('5', LONG_TEXT)}</tool_call>"),
    "brackets": ("hermes", '<tool_call>{"name": "f", "arguments": ' + '{"a": [1, 2]}, ' * 5000),
    "unfit": ("hermes", f'<tool_call>{{"x": "{LONG}'), "content": ("hermes", "a <tool_cal <" * 5000),
    "many": ("pangu", f"[unused11][{F5}][unused12]" * 1000), "bare": ("llama3", "; ".join([F5] * 1500)),
    "channels": ("harmony", f"{MARK}f<|message|>{LONG}<|"), "header": ("harmony", f"{MARK}{LONG}"),
    "braces": ("gemma4", f'<|tool_call>call:f{{a:<|"|>{LONG}<|"|>}}'), "bare words": ("gemma4", f"<|tool_call>call:f{{{'x' * 70_000}"),
    "pairs": ("glm", f"<tool_call>f\n{PAIRS.replace('1', LONG)}"), "invoke": ("minimax", BEGIN + INVOKE * 5000),
    "xml": ("qwen3-coder", f"<tool_call>{XML.replace('1', LONG)}"), "spaces": ("hermes", "a" + " \n" * 30_000),
}  # fmt: skip


@pytest.mark.parametrize("name", LONGS)
def test_no_character_is_looked_at_many_times(name: str) -> None:
    form, text = LONGS[name]
    started = time.process_time()
    for pieces in ([text], list(text)):
        assert sum(len(arguments) for _, arguments in read(form, pieces)[1]) <= 2 * len(text)
    assert time.process_time() - started < 10, "it would take minutes"
